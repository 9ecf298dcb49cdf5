package node

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/data/page"
)

// WritePage writes a report on a corpus as one HTML file, which replaces what is there. of is what was looked at: of paths the last
// element is shown alone, so that the page can be given away.
func WritePage(path string, of []string, report data.Inspection) error {
	var names []string
	for _, p := range of {
		names = append(names, filepath.Base(p))
	}
	var b bytes.Buffer
	if err := page.Write(&b, strings.Join(names, ", "), report); err != nil {
		return err
	}
	if err := writeFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("--html %s: %w; name a file in a folder that can be written", path, err)
	}
	return nil
}
