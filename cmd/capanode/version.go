package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the versions of this program and of what it is built on", Args: args(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"capanode": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "GOEXPERIMENT" || s.Key == "CGO_ENABLED" {
						v[s.Key] = s.Value
					}
				}
				for _, d := range info.Deps {
					switch d.Path {
					case "github.com/libp2p/go-libp2p", "github.com/libp2p/go-libp2p-pubsub", "github.com/gomlx/gomlx":
						v[d.Path] = d.Version
					}
				}
			}
			return a.print(v, keyValues(v))
		}}
}
