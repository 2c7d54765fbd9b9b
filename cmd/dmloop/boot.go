package main

import (
	"github.com/spf13/cobra"

	"dmloop/internal/boot"
)

func newBootCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "boot",
		Short: "Bring images up before the root file system is there",
		Long: `Save a mapping as a boot manifest, bring it up from there in an initramfs, or print it
as a kernel command line that needs no initramfs. See dmloop-boot(8).`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError("a subcommand is needed, such as: dmloop boot save NAME")
		},
	}
	cmd.AddCommand(newBootSaveCommand(env), newBootListCommand(env), newBootRemoveCommand(env), newBootActivateCommand(env),
		newBootVerifyCommand(env), newBootReleaseCommand(env), newBootRootCommand(env), newBootCmdlineCommand(env))
	return cmd
}

// bootDir adds the flag for the folder of manifests.
func bootDir(cmd *cobra.Command, store *boot.Store) {
	cmd.Flags().StringVar(&store.Dir, "dir", boot.Dir, "directory of the manifests")
}
