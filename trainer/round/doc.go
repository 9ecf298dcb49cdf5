// Package round owns the protocol of a training run: the signed records that peers exchange, the state that all of them
// replicate, and the pure rules that take a run from one committed state to the next. It imports no network, no file
// system and no clock: its inputs are messages and "the deadline passed", its outputs are values and actions. Package
// worker is the shell that does the I/O.
//
// # One round
//
// Everybody who holds the state S (the parent) trains its own local steps and publishes a [Header]: a signed description
// of its update, whose bytes travel as a blob. Peers fetch each other's blobs and publish [Seen]: the set of headers
// whose blobs they hold. When every live mate's set is the same, or when the deadline passes, each peer evaluates the same
// function of the Seen messages ([Quorum]): the headers that at least half of the voters hold are the committed set.
// Everyone aggregates exactly that set, which gives the same next state bit for bit, and announces a [Commit].
// [Attempt] is the state machine of that paragraph.
//
// # What is guaranteed
//
//   - The next state is a pure function of the parent state and the committed set. Two peers that commit the same set on
//     the same parent hold the same bytes, hence the same [Hash].
//   - The committed set is a pure function of the Seen messages; the order of their arrival does not matter.
//   - No sample enters a state twice within an epoch of its shard: a header's ranges must start at the parent's cursors,
//     and of two headers in one set that claim the same shard only one is applied ([Accept]).
//   - A missing peer is absent, not zero: the mean is taken over those who are in the set.
//   - Nobody waits for ever: each wait ends by a message, by a mate's silence (no heartbeat) or by a deadline. A lone peer
//     commits alone.
//
// # What is not guaranteed
//
// This is not consensus. Messages that are lost, or that arrive on one side of a deadline here and on the other side there,
// can make two peers commit different sets: a fork. Forks are detected by the state hashes in heartbeats and heal by a
// fixed order ([Claim.Beats]): the state with more committed tokens wins, ties by the larger hash; the losers fetch that
// state and go on. Their work of the forked rounds is lost, and their samples are free to be trained again.
// The order trusts the members of the roster to tell the truth about their committed tokens up to what the plan makes
// possible; the roster is signed by the run's owner.
package round
