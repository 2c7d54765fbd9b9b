package main

import (
	"github.com/spf13/cobra"

	"dmloop/internal/blockdev"
	"dmloop/internal/boot"
)

func newBootSaveCommand(env *cliEnv) *cobra.Command {
	var store boot.Store
	var before bool
	var fallback string
	cmd := &cobra.Command{
		Use:   "save NAME|IMAGE",
		Short: "Save a mapping as it is now for the next boots",
		Long: `Save a boot manifest of a mapping: which file it is made from, where that file lies,
on which partition, and which pins hold it. The initramfs has to be rebuilt afterwards
(update-initramfs -u, or dracut -f), since it contains a copy. An image whose blocks
have moved since is refused at boot.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := boot.SaveOptions{Way: boot.Verify, Fallback: boot.Fallback(fallback)}
			if before {
				o.Way = boot.BeforeMount
			}
			if o.Fallback != boot.Shell && o.Fallback != boot.Loop {
				return usageError("--fallback is shell or loop, not %q", fallback)
			}
			sys := env.system()
			defer sys.Close()
			m, err := boot.Make(cmd.Context(), sys, blockdev.Local(), args[0], o)
			if err != nil {
				return err
			}
			return store.Save(m)
		},
		ValidArgsFunction: completeMappings(env),
	}
	bootDir(cmd, &store)
	cmd.Flags().BoolVar(&before, "before-mount", false, "map from the manifest alone, before the host file system is mounted")
	cmd.Flags().StringVar(&fallback, "fallback", string(boot.Shell), "what to do when the image is refused: shell, or loop for a loop device")
	jsonFlag(env, cmd)
	return cmd
}
