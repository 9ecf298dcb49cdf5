package corpus

import "fmt"

// maxProblems bounds the examples that counts carry.
const maxProblems = 20

// Counts says what was found, and what was done about it.
type Counts struct {
	// Files that were looked at, and what became of those that gave no document or not all.
	Files       int64 `json:"files"`
	Empty       int64 `json:"empty_files"`       // without a byte
	Binary      int64 `json:"binary_files"`      // no text: NUL bytes or mostly invalid UTF-8
	Unreadable  int64 `json:"unreadable_files"`  // no permission, or an error of the disk
	Damaged     int64 `json:"damaged_files"`     // truncated or corrupt; what came before the damage is kept
	Bombs       int64 `json:"bombs"`             // unpacked to more than any text does; left at that point
	Changed     int64 `json:"changed_files"`     // size or time differ after the reading
	Unsupported int64 `json:"unsupported_files"` // of a known format that this version does not read

	// Directory entries that were passed over.
	Hidden   int64 `json:"hidden"`
	Links    int64 `json:"links"`    // symbolic links below folders; they are not followed
	Special  int64 `json:"special"`  // devices, pipes, sockets
	Excluded int64 `json:"excluded"` // by name

	// Records of structured files.
	Records      int64 `json:"records"`
	BadRecords   int64 `json:"bad_records"`     // no JSON, an impossible length
	NoField      int64 `json:"no_field"`        // without the text field
	NoText       int64 `json:"no_text"`         // the field is null, empty or no string
	TooLong      int64 `json:"too_long"`        // longer than MaxRecord
	Ragged       int64 `json:"ragged_rows"`     // CSV rows with another number of fields than the header
	OtherMembers int64 `json:"other_members"`   // tar members that are no text
	BlankLines   int64 `json:"blank_lines"`     // between records
	LostRows     int64 `json:"unreadable_rows"` // Parquet rows in pages that do not decode

	// Text that was repaired, or left as it is where it says so.
	ByteOrderMarks int64 `json:"byte_order_marks"`   // removed
	UTF16          int64 `json:"utf16_files"`        // turned into UTF-8
	Windows1252    int64 `json:"windows_1252_lines"` // lines in Latin-1 or Windows-1252, turned into UTF-8
	CRLF           int64 `json:"crlf"`               // line ends turned into one line feed
	NUL            int64 `json:"nul_bytes"`          // removed
	Surrogates     int64 `json:"lone_surrogates"`    // turned into U+FFFD
	InvalidUTF8    int64 `json:"invalid_utf8_bytes"` // kept byte for byte

	Documents  int64 `json:"documents"`   // handed on
	Bytes      int64 `json:"bytes"`       // of text handed on; 4 for each ready token
	NotSampled int64 `json:"not_sampled"` // documents outside the sample
	Capped     bool  `json:"capped"`      // a cap ended the reading

	Problems []Problem `json:"problems,omitempty"` // examples, at most 20
}

// Problem is one file that is not wholly in the corpus.
type Problem struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

func (c *Counts) fields() []*int64 {
	return []*int64{
		&c.Files, &c.Empty, &c.Binary, &c.Unreadable, &c.Damaged, &c.Bombs, &c.Changed, &c.Unsupported, &c.Hidden, &c.Links, &c.Special, &c.Excluded,
		&c.Records, &c.BadRecords, &c.NoField, &c.NoText, &c.TooLong, &c.Ragged, &c.OtherMembers, &c.BlankLines, &c.LostRows,
		&c.ByteOrderMarks, &c.UTF16, &c.Windows1252, &c.CRLF, &c.NUL, &c.Surrogates, &c.InvalidUTF8, &c.Documents, &c.Bytes, &c.NotSampled,
	}
}

func (c *Counts) add(o Counts) {
	to, from := c.fields(), o.fields()
	for i := range to {
		*to[i] += *from[i]
	}
	c.Capped = c.Capped || o.Capped
	c.Problems = append(c.Problems, o.Problems[:min(len(o.Problems), maxProblems-min(maxProblems, len(c.Problems)))]...)
}

func (c *Counts) problem(path, format string, args ...any) {
	if len(c.Problems) < maxProblems {
		c.Problems = append(c.Problems, Problem{path, fmt.Sprintf(format, args...)})
	}
}

// Broken is the number of files that are not wholly in the corpus although they should be.
func (c *Counts) Broken() int64 {
	return c.Unreadable + c.Damaged + c.Bombs + c.Changed + c.Unsupported
}

// Passed is the number of directory entries that were passed over.
func (c *Counts) Passed() int64 { return c.Hidden + c.Links + c.Special + c.Excluded }

// FirstProblem is the first example of a file that is not wholly in the corpus, or nothing.
func (c *Counts) FirstProblem() string {
	if len(c.Problems) == 0 {
		return ""
	}
	return c.Problems[0].Path + ": " + c.Problems[0].Why
}

// Lines says in words what the counts hold, leaving zeros out.
func (c *Counts) Lines() (lines []string) {
	for _, x := range []struct {
		n    int64
		what string
	}{
		{c.Files, "files"}, {c.Empty, "empty files"}, {c.Binary, "binary files, left out"}, {c.Unreadable, "files that could not be read"},
		{c.Damaged, "damaged files, kept up to the damage"}, {c.Bombs, "files that unpack to more than any text, left at that point"},
		{c.Changed, "files that changed while they were read"}, {c.Unsupported, "files of a format that is not read"},
		{c.Hidden, "hidden files and folders, passed over"}, {c.Links, "symbolic links, not followed"}, {c.Special, "pipes, sockets and devices, passed over"},
		{c.Excluded, "files passed over by name"}, {c.Records, "records"}, {c.BadRecords, "broken records, left out"}, {c.NoField, "records without the text field"},
		{c.NoText, "records without text"}, {c.TooLong, "records longer than the limit, left out"}, {c.Ragged, "rows with another number of fields than the header"},
		{c.OtherMembers, "members that are no text, passed over"}, {c.BlankLines, "blank lines"}, {c.LostRows, "rows in pages that do not decode"},
		{c.ByteOrderMarks, "byte order marks, removed"}, {c.UTF16, "files in UTF-16, turned into UTF-8"},
		{c.Windows1252, "lines in Windows-1252, turned into UTF-8"}, {c.CRLF, "line ends CR LF, made LF"}, {c.NUL, "NUL bytes, removed"},
		{c.Surrogates, "lone surrogates, made U+FFFD"}, {c.InvalidUTF8, "bytes of invalid UTF-8, kept"}, {c.NotSampled, "documents outside the sample"},
	} {
		if x.n > 0 {
			lines = append(lines, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	if c.Capped {
		lines = append(lines, "a cap ended the reading")
	}
	return lines
}
