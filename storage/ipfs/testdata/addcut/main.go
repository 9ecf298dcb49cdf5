// Command addcut puts a folder into a store as runs publish checkpoints, cut at the ends of tensors, and prints its CID. It is for the
// tests with kubo, which run programs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/safetensors"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: addcut STORE FOLDER")
		os.Exit(2)
	}
	if err := add(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func add(ctx context.Context, store, folder string) error {
	s, err := storage.Open(ctx, store, storage.Options{})
	if err != nil {
		return err
	}
	c, err := s.AddPath(ctx, folder, storage.PutOptions{Cut: safetensors.Cut})
	if err == nil {
		fmt.Println(c)
	}
	return errors.Join(err, s.Close())
}
