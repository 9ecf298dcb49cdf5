package node

import (
	"time"

	"github.com/capacloud/capanode/market/credit"
)

// Emit receives the events of a command, in order, from one goroutine at a time. Each event is a struct whose JSON form
// carries "type"; fields are only ever added.
type Emit func(event any)

// PlanEvent says what a run will do and cost, before anything is leased.
type PlanEvent struct {
	Type         string         `json:"type"` // plan
	Run          string         `json:"run"`
	Name         string         `json:"name"`
	Resumed      bool           `json:"resumed"` // an earlier process began this run
	Model        string         `json:"model"`
	Parameters   int64          `json:"parameters"`
	Trained      int64          `json:"trained_parameters"` // of these: what rounds exchange
	Init         string         `json:"init,omitempty"`     // CID of the model that the run starts from
	MemoryBytes  int64          `json:"memory_bytes"`       // estimate for one member
	Dataset      string         `json:"dataset"`
	TrainTokens  uint64         `json:"train_tokens"`
	HeldOut      uint64         `json:"validation_tokens"`
	Shards       int            `json:"shards"`
	Rounds       uint64         `json:"rounds"`
	LocalSteps   uint64         `json:"local_steps"` // of a round, in the mean
	Pace         string         `json:"pace"`        // auto or fixed
	Bits         float64        `json:"bits"`        // budget of the auto pace, per parameter and step; 0 is no limit
	Peers        uint64         `json:"peers"`
	Tokens       uint64         `json:"tokens"` // all rounds, all members
	WorkUnits    uint64         `json:"work_units"`
	Offers       int            `json:"offers"`   // in the book
	Matching     int            `json:"matching"` // of these
	Rejected     map[string]int `json:"rejected"` // by reason
	CostLow      float64        `json:"cost_low"` // credits
	CostHigh     float64        `json:"cost_high"`
	Budget       float64        `json:"budget,omitempty"`
	SecondsGuess float64        `json:"seconds"` // from the offers' measured speed
}

// LeaseEvent reports a lease that changed.
type LeaseEvent struct {
	Type         string  `json:"type"` // lease
	Run          string  `json:"run"`
	Lease        string  `json:"lease"`
	Peer         string  `json:"peer"`
	Device       string  `json:"device"`
	State        string  `json:"state"`
	Reason       string  `json:"reason,omitempty"`
	Price        float64 `json:"price"`        // credits per slot-hour
	Milliseconds float64 `json:"ms,omitempty"` // from the start of the planner to ACTIVE
	Epoch        uint64  `json:"epoch"`        // of the slot
	Spent        float64 `json:"spent"`        // credits
	Resumed      bool    `json:"resumed"`      // found in the log of an earlier process
	Replaces     string  `json:"replaces,omitempty"`
}

// RoundEvent reports a committed round.
type RoundEvent struct {
	Type            string  `json:"type"` // round
	Run             string  `json:"run"`
	Round           uint64  `json:"round"`  // 1 is the first
	Rounds          uint64  `json:"rounds"` // expected in all
	Step            uint64  `json:"step"`   // nominal optimiser steps committed
	Steps           uint64  `json:"steps"`  // of the run
	Loss            float64 `json:"loss"`   // token-weighted mean training loss, nats per token
	Tokens          uint64  `json:"tokens"`
	TokensPerSecond float64 `json:"tokens_per_second"`
	Peers           int     `json:"peers"` // whose updates the round holds
	BytesUp         uint64  `json:"bytes_up"`
	BytesDown       uint64  `json:"bytes_down"`
	CommSeconds     float64 `json:"comm_seconds"`
	ComputeSeconds  float64 `json:"compute_seconds"`
	Spent           float64 `json:"spent"` // credits so far
	State           string  `json:"state"` // hash of the replicated state
	ETASeconds      float64 `json:"eta_seconds"`
}

// EvalEvent reports a measurement on held-out data.
type EvalEvent struct {
	Type        string  `json:"type"` // eval
	Run         string  `json:"run"`
	Round       uint64  `json:"round"`
	Loss        float64 `json:"loss"` // nats per token
	Perplexity  float64 `json:"perplexity"`
	BitsPerByte float64 `json:"bits_per_byte"`
	Tokens      uint64  `json:"tokens"` // held-out tokens measured
}

// CheckpointEvent reports a model folder that members published.
type CheckpointEvent struct {
	Type       string `json:"type"` // checkpoint
	Run        string `json:"run"`
	Round      uint64 `json:"round"`
	Checkpoint string `json:"checkpoint"` // CID of the Hugging Face folder
	Peers      int    `json:"peers"`      // that published this CID
	Bytes      int64  `json:"bytes"`
}

// ReceiptEvent reports a signed receipt.
type ReceiptEvent struct {
	Type   string  `json:"type"` // receipt
	Run    string  `json:"run"`
	Lease  string  `json:"lease"`
	Peer   string  `json:"peer"`
	Nonce  uint64  `json:"nonce"`
	Tokens uint64  `json:"tokens"`
	Units  uint64  `json:"work_units"`
	Amount float64 `json:"amount"` // credits in all for this lease
}

// PeerEvent reports a member that came, went or was replaced.
type PeerEvent struct {
	Type   string `json:"type"` // peer
	Run    string `json:"run"`
	Peer   string `json:"peer"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// WarningEvent reports something that does not stop the run.
type WarningEvent struct {
	Type    string `json:"type"` // warning
	Run     string `json:"run,omitempty"`
	Warning string `json:"warning"`
}

// DoneEvent ends a run.
type DoneEvent struct {
	Type       string  `json:"type"` // done
	Run        string  `json:"run"`
	Checkpoint string  `json:"checkpoint"`
	FinalLoss  float64 `json:"final_loss"`
	ValLoss    float64 `json:"val_loss"`
	Tokens     uint64  `json:"tokens"`
	Rounds     uint64  `json:"rounds"`
	Seconds    float64 `json:"seconds"`
	Spent      float64 `json:"spent"` // credits
	WorkUnits  uint64  `json:"verified_work_units"`
	Replaced   int     `json:"replaced_peers"`
	Bytes      uint64  `json:"bytes"`               // of updates that the members fetched
	RingBytes  uint64  `json:"data_parallel_bytes"` // that a ring all-reduce of fp32 gradients would have moved in the same steps
	Out        string  `json:"out,omitempty"`
	Adapter    string  `json:"adapter_out,omitempty"` // folder of the adapter, of a run that trains one
	FirstLease float64 `json:"first_lease_ms"`        // from the start of the planner to the first ACTIVE lease
}

// credits converts an exact amount for display and JSON.
func credits(m credit.Micro) float64 { return float64(m) / float64(credit.PerCredit) }

// seconds converts a duration for JSON, in milliseconds of precision.
func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1e3 }
