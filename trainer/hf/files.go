package hf

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/capacloud/capanode/trainer/tokenizer"
)

// kept are the files of a folder, beside its weights, that belong to the model.
var kept = []string{
	configFile, generationFile, provenanceFile, cardFile, indexFile, tokenizer.HuggingFaceName, tokenizer.ConfigName, "special_tokens_map.json", "added_tokens.json",
	"vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt",
}

// Files lists the entries of a model folder: those that belong to the model, its weights included, and those that do not, such as
// code, pickles and weights for other programs.
func Files(dir string) (keep, leave []string, err error) {
	shards, err := openShards(Dir(dir))
	var weights []string
	for _, s := range shards {
		weights = append(weights, s.name)
		if cerr := s.file.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("hf: %w", err)
	}
	single := slices.Contains(weights, weightsFile)
	for _, e := range entries {
		name := e.Name()
		switch {
		case slices.Contains(weights, name), slices.Contains(kept, name) && !(single && name == indexFile):
			keep = append(keep, name)
		case !strings.HasPrefix(name, "."):
			leave = append(leave, name)
		}
	}
	return keep, leave, nil
}
