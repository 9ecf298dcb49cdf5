// Package node owns the wiring: it opens a home, joins the network and lets the rooms work together as a bootstrap
// node, a provider or a requester. It holds configuration, life cycle, the local API and the events that a person or a
// script sees. It refuses to own algorithms: rounds live in trainer, prices in market, bytes in storage.
package node
