package p2p

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	cachePeers    = 64          // remembered peers
	cacheAddrs    = 8           // addresses of each
	cacheMaxBytes = 256 << 10   // of the file
	cacheFirst    = time.Second // after the start; a node that is killed early should find its peers again, too
	cacheEvery    = time.Minute
)

// readCache reads the peers of the last run: one multiaddr with /p2p/ peer ID per line. What cannot be read is skipped,
// because a lost cache must not keep a node from starting.
func (h *Host) readCache() []peer.AddrInfo {
	file, err := os.Open(h.cfg.PeerCache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		h.log.Warn("remembered peers not read", "err", err)
		return nil
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, cacheMaxBytes))
	if err != nil {
		h.log.Warn("remembered peers not read", "err", err)
	}
	self, err := peer.IDFromPrivateKey(h.cfg.Identity)
	if err != nil {
		return nil // the configuration was checked
	}
	return parseCache(text, self)
}

// parseCache reads what [formatCache] writes, without this node itself.
func parseCache(text []byte, self peer.ID) []peer.AddrInfo {
	var infos []peer.AddrInfo
	at := make(map[peer.ID]int)
	for line := range strings.Lines(string(text)) {
		info, err := peer.AddrInfoFromString(strings.TrimSpace(line))
		if err != nil || info.ID == self {
			continue
		}
		i, known := at[info.ID]
		if !known {
			if len(infos) == cachePeers {
				continue
			}
			i = len(infos)
			at[info.ID] = i
			infos = append(infos, peer.AddrInfo{ID: info.ID})
		}
		if len(infos[i].Addrs) < cacheAddrs {
			infos[i].Addrs = append(infos[i].Addrs, info.Addrs...)
		}
	}
	return infos
}

func (h *Host) keepCache() {
	for pause := cacheFirst; sleep(h.ctx, pause); pause = min(2*pause, cacheEvery) {
		h.writeCache()
	}
}

// writeCache remembers the peers connected now, then those of the last run. Nobody connected means nothing better is known.
func (h *Host) writeCache() {
	var now []peer.AddrInfo
	for _, id := range h.host.Network().Peers() {
		if h.host.Network().Connectedness(id) == network.Connected {
			now = append(now, h.host.Peerstore().PeerInfo(id))
		}
	}
	if len(formatCache(now)) == 0 {
		return
	}
	if err := writeFile(h.cfg.PeerCache, formatCache(append(now, h.cache...))); err != nil {
		h.log.Warn("peers not remembered", "err", err)
	}
}

// formatCache is the text for the first peers that have addresses; of one that is named twice, the first naming counts.
func formatCache(infos []peer.AddrInfo) []byte {
	var text bytes.Buffer
	seen := make(map[peer.ID]bool)
	for _, info := range infos {
		if seen[info.ID] || len(seen) == cachePeers || len(info.Addrs) == 0 {
			continue
		}
		seen[info.ID] = true
		for _, a := range info.Addrs[:min(cacheAddrs, len(info.Addrs))] {
			fmt.Fprintf(&text, "%s/p2p/%s\n", a, info.ID)
		}
	}
	return text.Bytes()
}

// writeFile replaces a file so that a crash leaves the old or the new one.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("p2p: write %s: %w", path, err)
	}
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		os.Remove(temp.Name())
		return fmt.Errorf("p2p: write %s: %w", path, err)
	}
	return nil
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
