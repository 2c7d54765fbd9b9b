package main

import (
	"strings"
	"sync"

	"github.com/spf13/cobra"
)

// examples are real lines for each command, by its words after dmloop.
var examples = sync.OnceValue(func() map[string]string {
	return map[string]string{
		"create": `dmloop create /srv/image.img 10G
dmloop create /srv/data.img 500MB && dmloop map /srv/data.img`,
		"provision": `dmloop provision /srv/old.img
dmloop check /srv/old.img || dmloop provision /srv/old.img`,
		"grow": `dmloop grow /srv/image.img 20G
dmloop grow --resizefs data +500M`,
		"check": `dmloop check /srv/*.img
dmloop check /srv
dmloop check --json /srv/image.img
dmloop check --pin=swap /srv/image.img`,
		"extents": `dmloop extents /srv/image.img
dmloop extents --resume-offset /srv/swapfile
dmloop extents --svg where.svg /srv/image.img`,
		"table": `dmloop table /srv/image.img
dmloop table --concise --name data /srv/image.img`,
		"map": `dmloop map /srv/image.img
dmloop map --read-only --partscan /srv/disk.img disk
dmloop map --seal /srv/image.img
dmloop map --offset 1M --sizelimit 100M /srv/disk.img part`,
		"unmap": `dmloop unmap image
dmloop unmap --deferred /srv/image.img
dmloop unmap --all`,
		"list": `dmloop list
dmloop list --raw --noheadings --output NAME,STATE,GUARD
dmloop list --json image
dmloop list --shims`,
		"status": `dmloop status image
dmloop status --output +UUID image`,
		"verify": `dmloop verify
dmloop verify image data`,
		"pin": `dmloop pin /srv/image.img
dmloop pin --pin=swap /srv/sealed.img`,
		"unpin": `dmloop unpin /srv/image.img`,
		"seal": `dmloop seal /srv/image.img
dmloop seal --create 10G /srv/new.img
dmloop seal --adopt /srv/copy.img`,
		"unseal": `dmloop unseal /srv/image.img`,
		"gate": `dmloop gate
dmloop gate --allow vg-host -- lvconvert --type thin vg/host
dmloop gate --clear`,
		"guard": `dmloop guard --metrics unix:/run/dmloop/metrics.sock
dmloop guard --log-format json --idle-exit 10m`,
		"shim": `dmloop shim /dev/sdb1 srv && mount /dev/mapper/srv /srv
dmloop shim UUID=3f6c1c9e-9d0b-4c0e-a3a2-6d1f0b1c2d3e srv
dmloop shim --remove srv
dmloop shim --persist / --dry-run
dmloop shim --persist /srv --name srv`,
		"activate": `dmloop activate --all
dmloop activate --check
dmloop activate data`,
		"deactivate":    `dmloop deactivate data`,
		"boot save":     `dmloop boot save root`,
		"boot list":     `dmloop boot list`,
		"boot remove":   `dmloop boot remove root`,
		"boot activate": `dmloop boot activate --wait 30s root`,
		"boot verify":   `dmloop boot verify root`,
		"boot release":  `dmloop boot release root`,
		"boot root":     `dmloop boot root /dev/sda2`,
		"boot cmdline":  `dmloop boot cmdline root`,
		"completion":    `dmloop completion bash >/etc/bash_completion.d/dmloop`,
		"version":       `dmloop version`,
	}
})

// addExamples gives the commands below cmd their examples.
func addExamples(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		if text := examples()[strings.TrimPrefix(c.CommandPath(), "dmloop ")]; text != "" {
			c.Example = "  " + strings.ReplaceAll(text, "\n", "\n  ")
		}
		addExamples(c)
	}
}
