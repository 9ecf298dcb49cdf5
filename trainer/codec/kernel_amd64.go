package codec

import "golang.org/x/sys/cpu"

// fast says whether this CPU runs the assembly. Both paths give the same bits.
var fast = cpu.X86.HasAVX2
