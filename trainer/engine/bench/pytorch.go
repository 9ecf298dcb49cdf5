package bench

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

//go:embed pytorch.py
var pytorchScript string

// python returns the interpreter that has PyTorch, or "": the one that CAPANODE_PYTHON names, else python3.
func python(ctx context.Context) string {
	name := os.Getenv("CAPANODE_PYTHON")
	if name == "" {
		name = "python3"
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if exec.CommandContext(ctx, name, "-c", "import torch").Run() != nil {
		return ""
	}
	return name
}

// pytorch trains one model with PyTorch and returns its tokens per second.
func pytorch(ctx context.Context, interpreter string, c setting, limit time.Duration) (float64, error) {
	job, err := json.Marshal(map[string]any{"shape": c.shape, "width": c.width, "layers": c.layers, "heads": c.heads, "inner": c.inner,
		"context": c.context, "vocab": c.vocab, "rows": c.rows, "threads": c.threads, "seconds": limit.Seconds()})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, interpreter, "-", string(job))
	cmd.Stdin = strings.NewReader(pytorchScript)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", interpreter, err, lastLine(errs.String()))
	}
	var result struct {
		Rate float64 `json:"tokens_per_second"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return 0, fmt.Errorf("%s: %w", interpreter, err)
	}
	return result.Rate, nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
