package main

import (
	"testing"

	"github.com/capacloud/capanode/trainer/internal/assembly"
)

func TestGeneratedFilesAreCurrent(t *testing.T) { assembly.CheckCurrent(t, generate) }
