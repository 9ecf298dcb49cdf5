package corpus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxBraces bounds the paths that braces stand for.
const maxBraces = 1 << 16

// corpusFile is a file and which of the given paths it was found under.
type corpusFile struct {
	path   string
	source int
}

// expand lists the regular files that paths select: a file stands for itself, a folder for the files below it in sorted
// order, a pattern for its sorted matches. Below folders and patterns only names that include selects count, hidden
// files and folders are left out and symbolic links are not followed, so no loop can be entered.
func expand(o Options, counts *Counts) ([]corpusFile, error) {
	var files []corpusFile
	for source, path := range o.Paths {
		info, err := os.Stat(path)
		if err == nil && !info.IsDir() {
			if !info.Mode().IsRegular() {
				return nil, fmt.Errorf("corpus: %w: path %q is a %s: name a file, a folder or a pattern", ErrOptions, path, kind(info.Mode()))
			}
			files = append(files, corpusFile{path, source})
			continue
		}
		roots := []string{path}
		if errors.Is(err, fs.ErrNotExist) {
			roots, err = matches(path)
		}
		if err != nil {
			return nil, fmt.Errorf("corpus: path %q: %w", path, err)
		}
		for _, root := range roots {
			found, err := walk(root, o, counts)
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

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// matches returns what a pattern selects, in sorted order for each of its brace alternatives.
func matches(pattern string) ([]string, error) {
	alternatives, err := braces(pattern)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, a := range alternatives {
		found, err := filepath.Glob(a)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrOptions, err)
		}
		all = append(all, found...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: name an existing file, folder or pattern", fs.ErrNotExist)
	}
	return all, nil
}

// braces expands the first {a,b} or {000..012} of a pattern, and then the rest.
func braces(pattern string) ([]string, error) {
	open := strings.IndexByte(pattern, '{')
	if open < 0 {
		return []string{pattern}, nil
	}
	length := strings.IndexByte(pattern[open:], '}')
	if length < 0 {
		return []string{pattern}, nil
	}
	inner, after := pattern[open+1:open+length], pattern[open+length+1:]
	rest, err := braces(after)
	if err != nil {
		return nil, err
	}
	words := strings.Split(inner, ",")
	if from, to, ok := strings.Cut(inner, ".."); ok {
		if words, err = numbers(from, to); err != nil {
			return nil, err
		}
	}
	if len(words)*len(rest) > maxBraces {
		return nil, fmt.Errorf("%w: braces stand for more than %d paths", ErrOptions, maxBraces)
	}
	var all []string
	for _, w := range words {
		for _, r := range rest {
			all = append(all, pattern[:open]+w+r)
		}
	}
	return all, nil
}

// numbers counts from one to the other, both included, padded with zeros like the first.
func numbers(from, to string) ([]string, error) {
	a, err1 := strconv.Atoi(from)
	b, err2 := strconv.Atoi(to)
	if err1 != nil || err2 != nil || a < 0 || b < a || b-a >= maxBraces {
		return nil, fmt.Errorf("%w: {%s..%s}: write two whole numbers, the smaller first, at most %d apart", ErrOptions, from, to, maxBraces)
	}
	var all []string
	for n := a; n <= b; n++ {
		all = append(all, fmt.Sprintf("%0*d", len(from), n))
	}
	return all, nil
}

func walk(root string, o Options, counts *Counts) ([]string, error) {
	var files []string
	resolved, err := filepath.EvalSymlinks(root) // a corpus root may well be a link, such as a distribution's Go tree
	if err != nil {
		return nil, fmt.Errorf("corpus: path %q: %w", root, err)
	}
	err = filepath.WalkDir(resolved, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if path == resolved {
				return err
			}
			counts.Unreadable++
			counts.problem(path, "%v", err)
			return fs.SkipDir
		}
		hidden := path != resolved && strings.HasPrefix(entry.Name(), ".")
		switch {
		case entry.IsDir() && hidden:
			counts.Hidden++
			return fs.SkipDir
		case entry.IsDir():
		case hidden:
			counts.Hidden++
		case entry.Type()&fs.ModeSymlink != 0:
			counts.Links++
		case !entry.Type().IsRegular():
			counts.Special++
		case !included(entry.Name(), o.Include, o.Exclude):
			counts.Excluded++
		default:
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("corpus: read folder: %w", err)
	}
	return files, nil
}

// included reports whether a file name is selected and not excluded.
func included(name string, include, exclude []string) bool {
	return (len(include) == 0 || named(name, include)) && !named(name, exclude)
}

// named reports whether a file name, with or without its compression suffix, has one of the suffixes or matches one of the
// patterns.
func named(name string, patterns []string) bool {
	plain := strings.TrimSuffix(strings.TrimSuffix(name, ".gz"), ".zst")
	for _, want := range patterns {
		for _, n := range []string{name, plain} {
			if ok, err := filepath.Match(want, n); strings.HasSuffix(n, want) || err == nil && ok {
				return true
			}
		}
	}
	return false
}
