package data

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd file may ask of the decoder: 128 MiB, what `zstd --long=27` writes.
const maxWindow = 128 << 20

// corpusFile is a file and which of the given paths it was found under.
type corpusFile struct {
	path   string
	source int
}

// expand lists the regular files that paths select: a file stands for itself, a folder for the files below it in sorted
// order, a pattern for its sorted matches. Below folders and patterns only names that include selects count, hidden
// files and folders are left out and symbolic links are not followed.
func expand(paths, include []string, report *Report) ([]corpusFile, error) {
	var files []corpusFile
	for source, path := range paths {
		info, err := os.Stat(path)
		if err == nil && !info.IsDir() {
			files = append(files, corpusFile{path, source})
			continue
		}
		roots := []string{path}
		if errors.Is(err, fs.ErrNotExist) {
			if roots, err = filepath.Glob(path); err != nil || len(roots) == 0 {
				return nil, fmt.Errorf("data: corpus path %q: %w: name an existing file, folder or pattern", path, fs.ErrNotExist)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("data: corpus path: %w", err)
		}
		for _, root := range roots {
			found, err := walk(root, include, report)
			if err != nil {
				return nil, err
			}
			for _, f := range found {
				files = append(files, corpusFile{f, source})
			}
		}
	}
	return files, nil
}

func walk(root string, include []string, report *Report) ([]string, error) {
	var files []string
	resolved, err := filepath.EvalSymlinks(root) // a corpus root may well be a link, such as a distribution's Go tree
	if err != nil {
		return nil, fmt.Errorf("data: corpus path %q: %w", root, err)
	}
	err = filepath.WalkDir(resolved, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := path != resolved && strings.HasPrefix(entry.Name(), ".")
		switch {
		case entry.IsDir() && hidden:
			return fs.SkipDir
		case entry.IsDir():
		case hidden || !entry.Type().IsRegular() || !included(entry.Name(), include):
			report.Filtered++
		default:
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("data: read corpus folder: %w", err)
	}
	return files, nil
}

// included reports whether a file name, with or without its compression suffix, has one of the suffixes or matches one
// of the patterns.
func included(name string, include []string) bool {
	plain := strings.TrimSuffix(strings.TrimSuffix(name, ".gz"), ".zst")
	for _, want := range include {
		for _, n := range []string{name, plain} {
			if ok, err := filepath.Match(want, n); strings.HasSuffix(n, want) || err == nil && ok {
				return true
			}
		}
	}
	return len(include) == 0
}

// open returns the text of a file, decompressed when its name ends in .gz or .zst.
func open(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("data: open corpus file: %w", err)
	}
	text := textReader{Reader: f, file: f, done: func() {}}
	switch {
	case strings.HasSuffix(path, ".gz"):
		text.Reader, err = gzip.NewReader(f)
	case strings.HasSuffix(path, ".zst"):
		var dec *zstd.Decoder
		if dec, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			text.Reader, text.done = dec, dec.Close
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("data: decompress %s: %w", path, err)
	}
	return &text, nil
}

type textReader struct {
	io.Reader
	file *os.File
	done func()
}

func (t *textReader) Close() error {
	t.done()
	return t.file.Close()
}
