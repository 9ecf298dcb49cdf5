package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) importCommand() *cobra.Command {
	return &cobra.Command{Use: "import FOLDER|CID", Short: "Take a Hugging Face folder into the store, to sample from, measure and train on", Args: args(1, 1),
		Long: "Import reads a model in the shape of Llama, GPT-2 or BERT: config.json, safetensors in one file or several, in 32-bit floats,\n" +
			"bfloat16 or half precision, and tokenizer.json. It stores the files as they are and prints the CID that names the model.\n\n" +
			"What this program would compute in another way than transformers is refused with the key of config.json that asks for it.\n" +
			"An import that is interrupted leaves nothing behind.",
		RunE: func(cmd *cobra.Command, given []string) error {
			u, err := a.use()
			if err != nil {
				return err
			}
			m, err := node.Import(cmd.Context(), u, given[0])
			if err != nil {
				return err
			}
			t := table{rows: [][]string{{"checkpoint", m.CID}, {"model", fmt.Sprintf("%s, %s parameters in %s, vocabulary %d, context %d", m.Family,
				count(int64(m.Parameters)), m.Type, m.Vocab, m.Context)}, {"tokenizer", m.Tokenizer}}}
			if m.Problem != "" {
				t.rows[2][1] = "not usable: " + oneLine(m.Problem)
			}
			if len(m.Left) > 0 {
				t.rows = append(t.rows, []string{"left out", strings.Join(m.Left, ", ")})
			}
			return a.print(m, t)
		}}
}
