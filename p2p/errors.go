package p2p

import (
	"errors"
	"fmt"
	"strings"
)

// Every implementation of [Network] and [Router] wraps these, so that callers can tell failures apart with [errors.Is].
// A read or write past its deadline is [os.ErrDeadlineExceeded].
var (
	// ErrClosed reports an operation on a node, topic or stream that was closed.
	ErrClosed = errors.New("closed")
	// ErrUnreachable reports a peer that could not be dialled.
	ErrUnreachable = errors.New("peer unreachable")
	// ErrNoProtocol reports a peer that is reachable but does not serve the protocol.
	ErrNoProtocol = errors.New("peer does not serve the protocol")
	// ErrReset reports a stream that the other side, or the loss of the connection, aborted. A peer over its limits
	// sees its stream reset, too: back off before the next try.
	ErrReset = errors.New("stream reset")
	// ErrTooLarge reports a gossip message above [MaxGossip].
	ErrTooLarge = errors.New("gossip message too large")
	// ErrRefused reports a message that the node's own validator does not accept.
	ErrRefused = errors.New("refused by the topic's validator")
	// ErrJoined reports a topic that this node joined already.
	ErrJoined = errors.New("topic joined already")
	// ErrTopicName reports a topic name outside the allowed names, see [CheckTopic].
	ErrTopicName = errors.New("topic name not allowed")
)

// TopicPrefix starts every topic name. Subscriptions of remote peers to other names are not tracked.
const TopicPrefix = "/capanode/"

// MaxTopicName is the longest topic name in bytes.
const MaxTopicName = 128

// CheckTopic says whether a topic name is allowed: [TopicPrefix] and at least one more byte, all printable ASCII without
// spaces, at most [MaxTopicName] bytes.
func CheckTopic(name string) error {
	if len(name) > MaxTopicName {
		return fmt.Errorf("p2p: topic of %d bytes, limit %d: %w", len(name), MaxTopicName, ErrTopicName)
	}
	if !strings.HasPrefix(name, TopicPrefix) || len(name) == len(TopicPrefix) {
		return fmt.Errorf("p2p: topic %q must start with %q and go on: %w", name, TopicPrefix, ErrTopicName)
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return fmt.Errorf("p2p: topic %q has a byte outside printable ASCII: %w", name, ErrTopicName)
		}
	}
	return nil
}

// WithDefaults returns the limits with zero fields replaced by those of [DefaultLimits].
func (l Limits) WithDefaults() Limits {
	if l.Streams == 0 {
		l.Streams = DefaultLimits.Streams
	}
	if l.StreamsPerPeer == 0 {
		l.StreamsPerPeer = DefaultLimits.StreamsPerPeer
	}
	if l.Idle == 0 {
		l.Idle = DefaultLimits.Idle
	}
	return l
}
