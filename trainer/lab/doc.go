// Package lab owns the comparison of averaging methods: simulated peers in one process, each with its own executor, optimiser
// state and share of a real text, train the same small model for the same number of tokens under one method after another. It
// measures validation loss and the bytes that each peer would have moved. It refuses to know networks, clocks and signatures:
// package worker runs the same codecs, outer steps and schedules over those.
//
// Results are the same to the digit on every machine and for any number of cores: executors and codecs are exact, peers do not
// share state inside a step, and sums run in the order of the peers.
//
// # Bytes
//
// Bytes are what one peer downloads, averaged over the peers, which equals what it uploads. A ring all-reduce of a payload
// moves 2(N−1)/N payloads each way; an all-gather, in which everyone fetches everyone's blob, moves N−1 blobs. Blobs are
// counted with their headers as they come out of the codec; signed round headers, some hundreds of bytes a round whatever the
// model, are left out. The unit is data-parallel training with a float32 ring all-reduce in every step:
// 64(N−1)/N bits per parameter and step.
//
// # Small models
//
// Models of a tenth of a million parameters overstate what local steps cost: the loss gap of all such methods shrinks as models
// grow (DiLoCo scaling laws, arXiv 2503.09799). The order of the methods is what carries over, not the distances.
package lab
