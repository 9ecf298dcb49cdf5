package p2p

import (
	"context"
	"log/slog"
	"os"

	"github.com/libp2p/go-libp2p/gologshim"
)

// RouteLogs sends the log lines of the networking libraries to a handler, two levels less severe than they claim: what a
// stranger does wrong is an error to a library, and everyday life to a node, which strangers must not be able to fill with
// lines. What keeps a node from working comes back as an error from a call. Call it before the first host starts; the
// setting belongs to the process, as the libraries' loggers do.
func RouteLogs(h slog.Handler) {
	gologshim.SetDefaultHandler(milder{h})
	// quic-go prints to the standard logger when the kernel's UDP buffers are small. The setting fails on no known system.
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
}

// milder lowers the level of each record by two steps.
type milder struct{ slog.Handler }

const levelStep = slog.LevelError - slog.LevelInfo

func (m milder) Enabled(ctx context.Context, level slog.Level) bool {
	return m.Handler.Enabled(ctx, level-levelStep)
}

func (m milder) Handle(ctx context.Context, r slog.Record) error {
	r.Level -= levelStep
	return m.Handler.Handle(ctx, r)
}

func (m milder) WithAttrs(attrs []slog.Attr) slog.Handler { return milder{m.Handler.WithAttrs(attrs)} }
func (m milder) WithGroup(name string) slog.Handler       { return milder{m.Handler.WithGroup(name)} }
