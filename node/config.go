package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
)

// ErrConfig reports a configuration file or variable that is not what [Settings] knows.
var ErrConfig = errors.New("configuration")

// Setting documents one configuration key.
type Setting struct {
	Key     string `json:"key"`
	Default any    `json:"default"`
	Doc     string `json:"description"`
}

// Settings lists every configuration key. Each can be given as a flag, as CAPANODE_<KEY>, in the file, or left alone.
func Settings() []Setting {
	return []Setting{
		{"network", "main", "name of the network to join; nodes of other names are invisible"},
		{"bootstrap", []string{}, "addresses of bootstrap nodes, with /p2p/ peer IDs"},
		{"listen", []string{"/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"}, "addresses to listen on"},
		{"mdns", true, "find nodes on the local network by multicast DNS"},
		{"ipfs", false, "exchange blocks with connected IPFS nodes over bitswap"},
		{"quota", int64(20 << 30), "most bytes that the object store may hold"},
		{"plugin", "", "absolute path of the PJRT plugin that trains on CUDA cards; nothing is downloaded"},
		{"precision", "bf16", "what cards multiply in: bf16 (weights and sums stay float32) or fp32"},
		{"log", "warn", "least severe log line to show: debug, info, warn or error"},
	}
}

// Config is the merged configuration of one process.
type Config struct {
	Network   string
	Bootstrap []string
	Listen    []string
	MDNS      bool
	IPFS      bool
	Quota     int64
	Plugin    string
	Precision string
	Log       string
	Origin    map[string]string // key → flag, environment, file or default
}

// ConfigPath is $XDG_CONFIG_HOME/capanode/config.yaml, or ~/.config/capanode/config.yaml.
func ConfigPath() string {
	if d := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "capanode", "config.yaml")
	}
	user, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(user, ".config", "capanode", "config.yaml")
}

// LoadConfig merges flags over CAPANODE_* variables over the file over the defaults. flags holds only what was given.
// A missing file is no error unless required. Unknown keys are errors with a suggestion.
func LoadConfig(path string, required bool, flags map[string]any) (Config, error) {
	k, origin := koanf.New("."), map[string]string{}
	layer := func(name string, p koanf.Provider, parser koanf.Parser) error {
		l := koanf.New(".")
		if err := l.Load(p, parser); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrConfig, name, err)
		}
		for _, key := range l.Keys() {
			if err := known(name, key); err != nil {
				return err
			}
			if err := wellTyped(name, key, l.Get(key)); err != nil {
				return err
			}
			origin[key] = name
		}
		return k.Merge(l)
	}
	defaults := map[string]any{}
	for _, s := range Settings() {
		defaults[s.Key] = s.Default
	}
	if err := layer("default", confmap.Provider(defaults, "."), nil); err != nil {
		return Config{}, err
	}
	if _, err := os.Stat(path); err == nil {
		if err := layer("file "+path, file.Provider(path), yaml.Parser()); err != nil {
			return Config{}, err
		}
	} else if required {
		return Config{}, fmt.Errorf("%w: %s: %w; --config and CAPANODE_CONFIG must name a file", ErrConfig, path, err)
	}
	if err := layer("environment", env.Provider(".", env.Opt{Prefix: "CAPANODE_", TransformFunc: fromEnvironment}), nil); err != nil {
		return Config{}, err
	}
	if err := layer("flag", confmap.Provider(flags, "."), nil); err != nil {
		return Config{}, err
	}
	c := Config{
		Network: k.String("network"), Bootstrap: k.Strings("bootstrap"), Listen: k.Strings("listen"),
		MDNS: k.Bool("mdns"), IPFS: k.Bool("ipfs"), Quota: k.Int64("quota"), Log: k.String("log"),
		Plugin: k.String("plugin"), Precision: k.String("precision"), Origin: origin,
	}
	return c, c.check()
}

// fromEnvironment maps CAPANODE_BOOTSTRAP=a,b to the key bootstrap. Variables that configure other parts are skipped.
func fromEnvironment(name, value string) (string, any) {
	key := strings.ToLower(strings.TrimPrefix(name, "CAPANODE_"))
	if key == "home" || key == "config" {
		return "", nil
	}
	for _, s := range Settings() {
		if _, list := s.Default.([]string); list && s.Key == key {
			return key, strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
		}
	}
	return key, value
}

func known(where, key string) error {
	var keys []string
	for _, s := range Settings() {
		keys = append(keys, s.Key)
	}
	if slices.Contains(keys, key) {
		return nil
	}
	sort.Strings(keys)
	return fmt.Errorf("%w: %s: unknown key %q; known: %s", ErrConfig, where, key, strings.Join(keys, ", "))
}

// wellTyped refuses a value that is not of its setting's type, so that none is taken for its zero.
func wellTyped(where, key string, value any) error {
	i := slices.IndexFunc(Settings(), func(s Setting) bool { return s.Key == key })
	ok, want := true, ""
	switch Settings()[i].Default.(type) {
	case string:
		_, ok = value.(string)
		want = "a text"
	case bool:
		want = "true or false"
		if _, isBool := value.(bool); !isBool {
			_, err := strconv.ParseBool(fmt.Sprint(value))
			ok = err == nil
		}
	case int64:
		want = "a whole number"
		_, err := strconv.ParseInt(fmt.Sprint(value), 10, 64)
		ok = err == nil
	case []string:
		want = "a list of texts"
		switch list := value.(type) {
		case []string:
		case []any:
			ok = !slices.ContainsFunc(list, func(v any) bool { _, text := v.(string); return !text })
		default:
			ok = false
		}
	}
	if ok {
		return nil
	}
	return fmt.Errorf("%w: %s: %s is %v: write %s", ErrConfig, where, key, value, want)
}

func (c Config) check() error {
	switch {
	case c.Network == "" || strings.ContainsAny(c.Network, "/ "):
		return fmt.Errorf("%w: network %q: write a name without slash or space", ErrConfig, c.Network)
	case c.Quota < 64<<20:
		return fmt.Errorf("%w: quota %d bytes: write at least 67108864 (64 MiB)", ErrConfig, c.Quota)
	case c.Precision != "bf16" && c.Precision != "fp32":
		return fmt.Errorf("%w: precision %q: write bf16 or fp32", ErrConfig, c.Precision)
	case !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log):
		return fmt.Errorf("%w: log %q: write debug, info, warn or error", ErrConfig, c.Log)
	}
	return nil
}

// Values lists the merged settings in the order of [Settings], for `config show`.
func (c Config) Values() []Value {
	by := map[string]any{"network": c.Network, "bootstrap": c.Bootstrap, "listen": c.Listen, "mdns": c.MDNS, "ipfs": c.IPFS, "quota": c.Quota,
		"plugin": c.Plugin, "precision": c.Precision, "log": c.Log}
	var out []Value
	for _, s := range Settings() {
		out = append(out, Value{s.Key, by[s.Key], c.Origin[s.Key]})
	}
	return out
}

// Value is one merged setting and where it came from.
type Value struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}
