//go:build !unix

package bench

import "time"

// processTime returns 0: only Unix systems are asked.
func processTime() time.Duration { return 0 }
