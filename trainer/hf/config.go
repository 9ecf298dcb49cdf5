package hf

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/capacloud/capanode/trainer/model"
)

// real is a number that is always written with a point or an exponent: Python's readers tell 10000 from 10000.0.
type real float64

// MarshalJSON implements [json.Marshaler].
func (r real) MarshalJSON() ([]byte, error) {
	text := strconv.FormatFloat(float64(r), 'g', -1, 64)
	if !strings.ContainsAny(text, ".e") {
		text += ".0"
	}
	return []byte(text), nil
}

type generationJSON struct {
	FromModel bool   `json:"_from_model_config"`
	Bos       *int32 `json:"bos_token_id"`
	Eos       any    `json:"eos_token_id"`
}

// orNil returns the value of a pointer as JSON has it.
func orNil(end *int32) any {
	if end == nil {
		return nil
	}
	return *end
}

// readConfig turns config.json into a model and the type of its weights, empty when the file does not say. Whatever would compute
// something else than this program is refused with its key; so is a key that this program does not know.
func readConfig(raw []byte) (s model.Spec, dtype string, err error) {
	var h header
	var keys map[string]json.RawMessage
	if err := decode(raw, &keys); err != nil {
		return s, "", err
	}
	if err := decode(raw, &h); err != nil {
		return s, "", err
	}
	at := slices.IndexFunc(formats, func(f format) bool { return f.modelType == h.ModelType })
	if at < 0 {
		return s, "", refuse("model_type", h.ModelType)
	}
	f := formats[at]
	if len(h.Architectures) > 0 && !slices.Contains(h.Architectures, f.architecture) {
		return s, "", refuse("architectures", h.Architectures)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if err := f.checkKey(key, keys[key]); err != nil {
			return s, "", err
		}
	}
	if h.Type != "" && h.NewType != "" && h.Type != h.NewType {
		return s, "", refuse("torch_dtype", h.Type)
	}
	if dtype = cmp.Or(h.NewType, h.Type); dtype != "" {
		if _, err := ParseType(dtype); err != nil {
			return s, "", refuse("torch_dtype", dtype)
		}
	}
	if s, err = f.parse(raw); err != nil {
		return model.Spec{}, "", err
	}
	if err := s.Validate(); err != nil {
		return model.Spec{}, "", fmt.Errorf("hf: %s: %w: %w", configFile, ErrFormat, err)
	}
	return s, dtype, nil
}

// checkKey refuses a key that asks for what this program does not compute, or that it does not know.
func (f format) checkKey(key string, value json.RawMessage) error {
	allowed, ok := f.fixed[key]
	if !ok {
		allowed, ok = common[key]
	}
	if !ok {
		if slices.Contains(f.read, key) || slices.Contains(harmless, key) {
			return nil
		}
		return fmt.Errorf("hf: %s: %.80q is a key that this program does not know, so what it asks for could be missed: %w", configFile, key, ErrUnsupported)
	}
	var text bytes.Buffer
	if err := json.Compact(&text, value); err != nil {
		return fmt.Errorf("hf: %s: %s: %w: %w", configFile, key, ErrFormat, err)
	}
	if !slices.Contains(allowed, text.String()) {
		return refuse(key, text.String())
	}
	return nil
}
