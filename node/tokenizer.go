package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// text is what a requester knows of its run's tokenizer.
type text struct {
	tok   tokenizer.Tokenizer // nil until it is trained
	vocab int                 // planned; a trained one may come out smaller
	set   cid.Cid             // of the dataset that already has it, where the job names one
}

// findTokenizer finds what the job's text is made of, before memory is planned and the corpus is read: the tokenizer of the
// dataset that it names, a file, or the size of one to train.
func (r *requester) findTokenizer(ctx context.Context) (err error) {
	d := r.file.Data
	if r.base != nil {
		return r.tokenizerOfBase(ctx)
	}
	if d.CID != "" {
		return r.tokenizerOf(ctx, d.CID)
	}
	if r.text.tok, r.text.vocab, err = chosenTokenizer(ctx, r.bytes(), d, r.o.JobPath); err != nil {
		return fmt.Errorf("%w: data.tokenizer: %w", ErrJob, elsewhere(err))
	}
	return nil
}

// chosenTokenizer returns the tokenizer that a data section names and its vocabulary; of one that is to be trained the vocabulary
// alone. Relative paths start at the file beside.
func chosenTokenizer(ctx context.Context, b blobs, d job.DataPart, beside string) (tok tokenizer.Tokenizer, vocab int, err error) {
	choice, err := d.Choice()
	if err != nil {
		return nil, 0, err
	}
	switch {
	case choice.Train > 0:
		return nil, choice.Train, nil
	case choice.Path != "":
		tok, err = loadTokenizer(besideJob(beside, choice.Path))
	case choice.File.Defined():
		tok, err = tokenizerFile(ctx, b, choice.File)
	default:
		tok = tokenizer.Byte{}
	}
	if err != nil {
		return nil, 0, err
	}
	return tok, tok.Vocab(), nil
}

// tokenizerOf takes the tokenizer of a dataset. A job file that names another one is a mistake.
func (r *requester) tokenizerOf(ctx context.Context, set string) (err error) {
	if r.text.set, err = parseCID(set); err != nil {
		return err
	}
	record, err := r.bytes().Get(ctx, r.text.set, nil, wire.MaxRecord)
	if err != nil {
		return elsewhere(fmt.Errorf("dataset %s: %w", set, err))
	}
	m, err := dataset.Decode(record)
	if err != nil {
		return fmt.Errorf("%w: dataset %s: %w", ErrJob, set, err)
	}
	if r.text.tok, err = openTokenizer(ctx, r.bytes(), m.Tokenizer.Kind); err != nil {
		return fmt.Errorf("%w: dataset %s: %w", ErrJob, set, elsewhere(err))
	}
	r.text.vocab = r.text.tok.Vocab()
	if !r.file.NamesTokenizer() {
		return nil
	}
	if choice, err := r.file.Data.Choice(); err == nil && choice.File.Defined() {
		if n, err := tokenizer.ParseName(m.Tokenizer.Kind); err == nil && n.File.Equals(choice.File) {
			return nil
		}
	}
	named, _, err := chosenTokenizer(ctx, r.bytes(), r.file.Data, r.o.JobPath)
	if err != nil {
		return fmt.Errorf("%w: data.tokenizer: %w", ErrJob, elsewhere(err))
	}
	if named == nil || named.Name() != m.Tokenizer.Kind {
		return fmt.Errorf("%w: data.tokenizer is %s, dataset %s was made with %s: leave data.tokenizer out, or make the dataset anew from its text",
			ErrJob, r.file.Data.Tokenizer, set, m.Tokenizer.Kind)
	}
	return nil
}

// trainTokenizer trains the tokenizer that the job asks for on the text that the run trains on.
func (r *requester) trainTokenizer(ctx context.Context, o data.Options) error {
	tok, report, err := trainedTokenizer(ctx, o, r.text.vocab)
	if err != nil {
		return err
	}
	r.Node.log.Info("tokenizer", "name", tok.Name(), "vocabulary", tok.Vocab(), "bytes", report.Bytes, "words", report.Words)
	if w := smallVocabulary(tok, r.text.vocab); w != "" {
		r.emit(WarningEvent{Type: "warning", Warning: fmt.Sprintf("%s: the model has %d", w, tok.Vocab())})
	}
	r.text.tok, r.text.vocab = tok, tok.Vocab()
	return nil
}

// trainedTokenizer makes a BPE of the text that a dataset with these options trains on.
func trainedTokenizer(ctx context.Context, o data.Options, vocab int) (*tokenizer.BPE, tokenizer.TrainReport, error) {
	o.Tokenizer = nil
	return tokenizer.Train(ctx, data.Texts(ctx, o), tokenizer.TrainOptions{Vocab: vocab})
}

// smallVocabulary says that a corpus had too few pairs for the vocabulary that was asked for, or nothing.
func smallVocabulary(tok tokenizer.Tokenizer, asked int) string {
	if tok.Vocab() >= asked {
		return ""
	}
	return fmt.Sprintf("the corpus gives a vocabulary of %d, bpe:%d asks for more", tok.Vocab(), asked)
}

// tokenizerFile reads a tokenizer.json by its CID. Its end-of-text token is the first of the usual ones.
func tokenizerFile(ctx context.Context, b blobs, c cid.Cid) (tokenizer.Tokenizer, error) {
	raw, err := b.Get(ctx, c, nil, tokenizer.MaxFile)
	if err != nil {
		return nil, err
	}
	return tokenizer.Load(raw, nil)
}

// loadTokenizer reads a tokenizer from a file, or from a folder in Hugging Face layout.
func loadTokenizer(path string) (tokenizer.Tokenizer, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, tokenizer.HuggingFaceName)
	}
	raw, err := readAtMost(path, tokenizer.MaxFile)
	if err != nil {
		return nil, err
	}
	config, err := readAtMost(filepath.Join(filepath.Dir(path), tokenizer.ConfigName), maxTokenizerConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t, err := tokenizer.Load(raw, config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// maxTokenizerConfig bounds tokenizer_config.json in bytes; chat templates make it long.
const maxTokenizerConfig = 8 << 20

func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("%s has more than %d bytes: %w", path, limit, tokenizer.ErrInvalid)
	}
	return raw, err
}

// besideJob resolves a path of a job file: relative ones start at the file, so that a job and its data can move together.
func besideJob(jobPath, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(jobPath), path)
}

// openTokenizer returns the tokenizer that a record names.
func openTokenizer(ctx context.Context, b blobs, name string) (tokenizer.Tokenizer, error) {
	return tokenizer.Open(ctx, name, func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error) { return b.Get(ctx, c, nil, limit) })
}

// checkTokenizer refuses a dataset of another tokenizer than the run's, and a tokenizer of another size than the model's.
func checkTokenizer(m dataset.Manifest, rec job.Record) error {
	if m.Tokenizer.Kind != rec.Tokenizer || m.Tokenizer.Vocab > uint64(rec.Model.Vocab) || !rec.VocabFits(int(m.Tokenizer.Vocab)) {
		return fmt.Errorf("%w: dataset %s has %d tokens of %s, the model %d of %s: they must be the same", ErrJob, rec.Dataset,
			m.Tokenizer.Vocab, m.Tokenizer.Kind, rec.Model.Vocab, rec.Tokenizer)
	}
	return nil
}
