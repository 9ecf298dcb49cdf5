package p2p

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	gossipQueue    = 256     // messages waiting for a validator, for one peer, or for Next; more are dropped
	gossipOverhead = 4 << 10 // room for topic, author, signature and control fields around a largest message
	maxSubs        = 128     // topics tracked for one remote peer
	bootstrapScore = 2000    // application score of configured bootstrap nodes
	acceptPX       = 1000    // score from which peers handed over by a pruning node are believed: bootstrap nodes only
	scoreMemory    = 6 * time.Hour
)

func (h *Host) startGossip() error {
	params := pubsub.DefaultGossipSubParams()
	params.D, params.Dlo, params.Dhi, params.Dscore, params.Dout = 8, 6, 12, 4, 2
	if h.cfg.Role == Bootstrap { // no mesh of its own: whoever grafts is pruned and told of others
		params.D, params.Dlo, params.Dhi, params.Dscore, params.Dout = 0, 0, 0, 0, 0
		params.Dlazy = 64
		params.PruneBackoff = 5 * time.Minute
	}
	filter := &subFilter{topics: make(map[peer.ID]map[string]bool)}
	h.host.Network().Notify(&network.NotifyBundle{DisconnectedF: func(n network.Network, c network.Conn) {
		if n.Connectedness(c.RemotePeer()) != network.Connected {
			filter.forget(c.RemotePeer())
		}
	}})
	var err error
	h.gossip, err = pubsub.NewGossipSub(h.ctx, h.host,
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithMaxMessageSize(MaxGossip+gossipOverhead),
		pubsub.WithValidateQueueSize(gossipQueue),
		pubsub.WithPeerOutboundQueueSize(gossipQueue),
		pubsub.WithGossipSubParams(params),
		pubsub.WithGossipSubProtocols([]protocol.ID{GossipProtocol(h.cfg.Network)}, gossipFeatures),
		pubsub.WithFloodPublish(true),
		pubsub.WithPeerExchange(h.cfg.Role == Bootstrap),
		pubsub.WithSubscriptionFilter(pubsub.WrapLimitSubscriptionFilter(filter, maxSubs)),
		pubsub.WithPeerScore(h.scoreParams(), &pubsub.PeerScoreThresholds{
			GossipThreshold: -500, PublishThreshold: -1000, GraylistThreshold: -2500,
			AcceptPXThreshold: acceptPX, OpportunisticGraftThreshold: 3.5,
		}),
		pubsub.WithLogger(slog.New(milder{h.log.Handler()})),
	)
	if err != nil {
		return fmt.Errorf("p2p: start gossip: %w", err)
	}
	return nil
}

// GossipProtocol is the stream protocol of a network's gossip: gossipsub 1.2 under a name of its own, so that nodes of
// different networks that happen to be connected exchange nothing.
func GossipProtocol(network string) protocol.ID {
	return protocolPrefix(network) + pubsub.GossipSubID_v12
}

// gossipFeatures says what gossipsub 1.2 can do.
func gossipFeatures(f pubsub.GossipSubFeature, _ protocol.ID) bool {
	return f == pubsub.GossipSubFeatureMesh || f == pubsub.GossipSubFeaturePX || f == pubsub.GossipSubFeatureIdontwant
}

// messageID names a message by author, topic and payload: signing the same bytes again makes no new message.
func messageID(m *pb.Message) string {
	d := sha256.New()
	for _, part := range [][]byte{m.GetFrom(), []byte(m.GetTopic()), m.GetData()} {
		fmt.Fprintf(d, "%d:", len(part))
		d.Write(part)
	}
	return string(d.Sum(nil))
}

// scoreParams values peers by behaviour. Sharing an address is no fault until it is hundreds outside site networks.
func (h *Host) scoreParams() *pubsub.PeerScoreParams {
	trusted := make(map[peer.ID]bool)
	for _, b := range h.boot {
		trusted[b.ID] = true
	}
	var local []*net.IPNet
	for _, p := range localNets {
		local = append(local, &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
	}
	return &pubsub.PeerScoreParams{
		Topics:        make(map[string]*pubsub.TopicScoreParams),
		TopicScoreCap: 100,
		AppSpecificScore: func(id peer.ID) float64 {
			if trusted[id] {
				return bootstrapScore
			}
			return 0
		},
		AppSpecificWeight:           1,
		IPColocationFactorWeight:    -50,
		IPColocationFactorThreshold: connsPerIP4 / 2,
		IPColocationFactorWhitelist: local,
		BehaviourPenaltyWeight:      -10,
		BehaviourPenaltyThreshold:   6,
		BehaviourPenaltyDecay:       pubsub.ScoreParameterDecay(time.Hour),
		DecayInterval:               pubsub.DefaultDecayInterval,
		DecayToZero:                 pubsub.DefaultDecayToZero,
		RetainScore:                 scoreMemory,
	}
}

// topicScore rewards first delivery a little and punishes garbage hard: one invalid message costs the mesh, two cost the
// connection's gossip for hours. Slow delivery is not punished: young networks are small and home links are slow.
func topicScore() *pubsub.TopicScoreParams {
	return &pubsub.TopicScoreParams{
		SkipAtomicValidation:           true,
		TopicWeight:                    1,
		TimeInMeshWeight:               0.01,
		TimeInMeshQuantum:              time.Second,
		TimeInMeshCap:                  3600,
		FirstMessageDeliveriesWeight:   1,
		FirstMessageDeliveriesDecay:    pubsub.ScoreParameterDecay(10 * time.Minute),
		FirstMessageDeliveriesCap:      50,
		InvalidMessageDeliveriesWeight: -1000,
		InvalidMessageDeliveriesDecay:  pubsub.ScoreParameterDecay(time.Hour),
	}
}

// subFilter tracks only subscriptions to allowed names, and only so many for each peer. Without it a peer makes every node
// remember any number of topics.
type subFilter struct {
	mu     sync.Mutex
	topics map[peer.ID]map[string]bool
}

var _ pubsub.SubscriptionFilter = (*subFilter)(nil)

// CanSubscribe implements [pubsub.SubscriptionFilter].
func (f *subFilter) CanSubscribe(topic string) bool { return CheckTopic(topic) == nil }

// FilterIncomingSubscriptions implements [pubsub.SubscriptionFilter].
func (f *subFilter) FilterIncomingSubscriptions(from peer.ID, subs []*pb.RPC_SubOpts) ([]*pb.RPC_SubOpts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.topics[from]
	var kept []*pb.RPC_SubOpts
	for _, sub := range pubsub.FilterSubscriptions(subs, f.CanSubscribe) {
		name := sub.GetTopicid()
		switch {
		case !sub.GetSubscribe():
			delete(known, name)
		case known[name]:
		case len(known) >= maxSubs:
			return nil, pubsub.ErrTooManySubscriptions
		default:
			if known == nil {
				known = make(map[string]bool)
				f.topics[from] = known
			}
			known[name] = true
		}
		kept = append(kept, sub)
	}
	return kept, nil
}

func (f *subFilter) forget(id peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.topics, id)
}

// topic is a joined gossip topic.
type topic struct {
	host  *Host
	name  string
	inner *pubsub.Topic
	sub   *pubsub.Subscription
	left  context.Context // ends when the topic or the host is closed
	stop  context.CancelFunc
}

var _ Topic = (*topic)(nil)

// Join implements [Network]. The host also looks for other subscribers through the DHT.
func (h *Host) Join(name string, validate Validator) (Topic, error) {
	if err := CheckTopic(name); err != nil {
		return nil, err
	}
	if err := h.usable(context.Background()); err != nil {
		return nil, fmt.Errorf("p2p: join %s: %w", name, err)
	}
	key, err := topicKey(h.cfg.Network, name)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	taken := h.topics[name] != nil
	t := &topic{host: h, name: name}
	t.left, t.stop = context.WithCancel(h.ctx)
	if !taken {
		h.topics[name] = t
	}
	h.mu.Unlock()
	if taken {
		t.stop()
		return nil, fmt.Errorf("p2p: join %s: %w", name, ErrJoined)
	}
	if err := t.subscribe(validate); err != nil {
		t.Close()
		return nil, fmt.Errorf("p2p: join %s: %w", name, err)
	}
	h.background(func() { h.meetTopic(t, key) })
	return t, nil
}

func (t *topic) subscribe(validate Validator) error {
	h := t.host
	if validate != nil {
		err := h.gossip.RegisterTopicValidator(t.name, t.guard(validate), pubsub.WithValidatorInline(true))
		if err != nil {
			return err
		}
	}
	var err error
	if t.inner, err = h.gossip.Join(t.name); err != nil {
		return err
	}
	if err := t.inner.SetScoreParams(topicScore()); err != nil {
		return err
	}
	self := h.ID()
	t.sub, err = t.inner.Subscribe(pubsub.WithBufferSize(gossipQueue),
		pubsub.WithMessageFilter(func(m *pubsub.Message) bool { return m.GetFrom() != self }))
	return err
}

// guard adapts a validator. Bytes from strangers must not stop the node, even when the validator is wrong about them.
func (t *topic) guard(validate Validator) pubsub.ValidatorEx {
	return func(_ context.Context, _ peer.ID, m *pubsub.Message) (result pubsub.ValidationResult) {
		defer func() {
			if cause := recover(); cause != nil {
				t.host.log.Error("validator panicked, message dropped", "topic", t.name, "author", m.GetFrom(), "cause", cause,
					"stack", string(debug.Stack()))
				result = pubsub.ValidationIgnore
			}
		}()
		if len(m.GetData()) > MaxGossip {
			return pubsub.ValidationReject
		}
		switch validate(m.GetFrom(), m.GetData()) {
		case Accept:
			return pubsub.ValidationAccept
		case Reject:
			return pubsub.ValidationReject
		}
		return pubsub.ValidationIgnore
	}
}

// Publish implements [Topic]. Bytes that this node published within the last two minutes are not sent again.
func (t *topic) Publish(ctx context.Context, data []byte) error {
	if len(data) > MaxGossip {
		return fmt.Errorf("p2p: publish %d bytes on %s, limit %d: %w", len(data), t.name, MaxGossip, ErrTooLarge)
	}
	if err := t.host.usable(ctx); err != nil {
		return fmt.Errorf("p2p: publish on %s: %w", t.name, err)
	}
	err := t.inner.Publish(ctx, data)
	var refused pubsub.ValidationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	case errors.Is(err, pubsub.ErrTopicClosed):
		err = ErrClosed
	}
	return fmt.Errorf("p2p: publish on %s: %w", t.name, err)
}

// Next implements [Topic]. When nobody calls it, messages above a queue of 256 are dropped.
func (t *topic) Next(ctx context.Context) (Message, error) {
	either, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.host.ctx, cancel)()
	m, err := t.sub.Next(either)
	if err != nil {
		if ctx.Err() == nil {
			err = ErrClosed
		}
		return Message{}, fmt.Errorf("p2p: next on %s: %w", t.name, err)
	}
	return Message{From: m.GetFrom(), Data: m.GetData()}, nil
}

// Peers implements [Topic].
func (t *topic) Peers() []peer.ID {
	if t.left.Err() != nil {
		return nil
	}
	return sortPeers(t.inner.ListPeers())
}

// Close implements [Topic]. It undoes what subscribe did, as far as it got.
func (t *topic) Close() error {
	t.stop()
	h := t.host
	h.mu.Lock()
	mine := h.topics[t.name] == t
	h.mu.Unlock()
	if !mine {
		return nil
	}
	if t.sub != nil {
		t.sub.Cancel()
	}
	var err error
	if t.inner != nil && h.ctx.Err() == nil {
		err = t.inner.Close()
	}
	if h.ctx.Err() == nil {
		h.gossip.UnregisterTopicValidator(t.name) // fails only when there was none
	}
	h.mu.Lock()
	delete(h.topics, t.name)
	h.mu.Unlock()
	if err != nil && h.ctx.Err() == nil {
		return fmt.Errorf("p2p: leave %s: %w", t.name, err)
	}
	return nil
}
