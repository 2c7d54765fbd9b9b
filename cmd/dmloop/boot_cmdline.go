package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/boot"
	"dmloop/internal/fault"
)

// bootlineOptions are the flags of boot cmdline.
type bootlineOptions struct {
	boot.CmdlineOptions
	concise    bool
	rootHash   string
	hashOffset int64
	verityName string
}

func newBootCmdlineCommand(env *cliEnv) *cobra.Command {
	o := &bootlineOptions{}
	cmd := &cobra.Command{
		Use:   "cmdline NAME|IMAGE",
		Short: "Print kernel parameters that make the mapping without an initramfs",
		Long: `Print dm-mod.create= and root= for a kernel with CONFIG_DM_INIT: the shim, the image
on it, and with --verity-root-hash dm-verity on top. The kernel takes at most 256
rows for a device and less than 4096 bytes in all. An image that is used in this way
is not verified first, and only the immutable flag pins it.`,
		Args:              cobra.ExactArgs(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd, env, args[0]) },
		ValidArgsFunction: completeMappings(env),
	}
	f := cmd.Flags()
	f.StringVar(&o.Device, "device", "", "how the kernel finds the host's partition: PARTUUID=..., /dev/vda1 or 254:1")
	f.BoolVarP(&o.ReadOnly, "read-only", "r", false, "make the image's device read-only")
	f.BoolVar(&o.concise, "concise", false, "print the value only, as dmsetup create --concise takes it")
	f.StringVar(&o.rootHash, "verity-root-hash", "", "put dm-verity with this root hash on top")
	f.Int64Var(&o.hashOffset, "verity-hash-offset", 0, "where in the image veritysetup wrote its superblock, in bytes")
	f.StringVar(&o.verityName, "verity-name", "verity", "name of the verity device")
	jsonFlag(env, cmd)
	return cmd
}

func (o *bootlineOptions) run(cmd *cobra.Command, env *cliEnv, target string) error {
	sys := env.system()
	defer sys.Close()
	m, err := boot.Make(cmd.Context(), sys, blockdev.Local(), target, boot.SaveOptions{Way: boot.BeforeMount, Fallback: boot.Shell})
	if err != nil {
		return err
	}
	if o.rootHash != "" {
		if o.Verity, err = o.readVerity("/dev/mapper/" + m.Record.Name); err != nil {
			return &fault.Error{Class: fault.Failed, Subject: target, Message: "dm-verity: " + err.Error()}
		}
	}
	text, last, err := boot.Concise(m, o.CmdlineOptions)
	var limit *boot.LimitError
	switch {
	case errors.As(err, &limit):
		return &fault.Error{Class: fault.NotMappable, Subject: target, Message: limit.Error(), Remedy: advice.FewerExtents}
	case err != nil:
		return err
	}
	if !o.concise {
		text = fmt.Sprintf("%s root=/dev/dm-%d", boot.Parameter(text), last)
	}
	if env.json {
		return printJSON(env, struct {
			Parameters string `json:"parameters"`
		}{text})
	}
	fmt.Fprintln(env.stdout, text)
	return nil
}

// readVerity reads the superblock that veritysetup wrote into the image.
func (o *bootlineOptions) readVerity(device string) (*boot.Verity, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	block := make([]byte, 512)
	if _, err := f.ReadAt(block, o.hashOffset); err != nil {
		return nil, err
	}
	superblock, err := boot.ParseVerity(block)
	if err != nil {
		return nil, err
	}
	return &boot.Verity{Name: o.verityName, HashOffset: o.hashOffset, RootHash: o.rootHash, Superblock: superblock}, nil
}
