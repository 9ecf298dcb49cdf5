// Package nvml owns the back-end for NVIDIA cards: the driver's own library, loaded at run time. It refuses to change any
// setting of a card. Builds without cgo, and systems other than Linux, get a package that says so.
package nvml
