package ipfs

import (
	"context"
	"log/slog"

	logging "github.com/ipfs/go-log/v2"
	"go.uber.org/zap/zapcore"
)

// RouteLogs sends the log lines of boxo to a handler, as informative ones at most: what a stranger does wrong is an error to a
// library and everyday life to a node. The setting belongs to the process, as the library's loggers do.
func RouteLogs(h slog.Handler) { logging.SetPrimaryCore(slogCore{h}) }

// slogCore hands the lines of zap to slog. The library decides which ones it writes: its errors.
type slogCore struct{ h slog.Handler }

func (c slogCore) Enabled(zapcore.Level) bool {
	return c.h.Enabled(context.Background(), slog.LevelInfo)
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.h.WithAttrs(attrs(fields))}
}

func (c slogCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	r := slog.NewRecord(e.Time, slog.LevelInfo, e.Message, 0)
	r.AddAttrs(slog.String("library", e.LoggerName), slog.String("level", e.Level.String()))
	r.AddAttrs(attrs(fields)...)
	return c.h.Handle(context.Background(), r)
}

func (slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	e := zapcore.NewMapObjectEncoder()
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		f.AddTo(e)
	}
	for k, v := range e.Fields {
		out = append(out, slog.Any(k, v))
	}
	return out
}
