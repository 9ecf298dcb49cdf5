// Package faultlab owns the laboratory in which a training run is broken on purpose: the program's own worker, one for each
// peer, in one process, over a network in memory and on virtual time. A [Lab] starts, kills and restarts peers, cuts and slows
// the network, and calls a script at every step of the protocol: before and after a peer says something, while it trains,
// fetches or serves a blob. A [Ledger] of all that was said checks afterwards that the committed states follow from each
// other. [Quadratic] and [Llama] are the models, [Numbers] and [Text] the data.
//
// It is support for tests and refuses to be anything else: it holds no rule of the protocol, and nothing of it is in the
// worker. What a peer does is seen on its network, its blob store and its engine, which the laboratory wraps.
//
// All but the construction of data must run inside testing/synctest; see [Virtual].
package faultlab
