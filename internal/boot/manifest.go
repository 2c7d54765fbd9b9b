// Package boot brings images up before the real root file system is there: manifests
// that say what an image was when it was saved, their activation in an initramfs, and
// the kernel command line that needs none.
package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

// Version is the version of the stored format.
const Version = 1

// Way says how an image is brought up.
type Way string

// The ways. Verify mounts the host first and looks; BeforeMount trusts the manifest
// and has the image verified once the host is mounted.
const (
	Verify      Way = "verify"
	BeforeMount Way = "before-mount"
)

// Fallback says what a refused image leads to.
type Fallback string

// The fallbacks: a shell on the console, or the same device over a loop device.
const (
	Shell Fallback = "shell"
	Loop  Fallback = "loop"
)

// Host is the file system that the image lies on, and the device under it.
type Host struct {
	Filesystem string          `json:"filesystem"`
	UUID       string          `json:"uuid"`
	PartUUID   string          `json:"partuuid,omitempty"`
	Sectors    dmtable.Sectors `json:"sectors"` // of the device below the shim
	Shim       string          `json:"shim"`    // name of the identity device
	Base       dmtable.Device  `json:"base"`    // the device below when saved; the record's table names it
}

// Manifest is what is known of an image when the machine starts.
type Manifest struct {
	Version  int           `json:"version"`
	Way      Way           `json:"way"`
	Fallback Fallback      `json:"fallback"`
	Host     Host          `json:"host"`
	Path     string        `json:"path"` // of the image, from the root of its file system
	Record   record.Record `json:"-"`
}

// Point is where the host file system of the mapping called name is mounted.
func Point(name string) string { return "/run/dmloop/host/" + name }

// sumPrefix begins the last line of a stored manifest.
const sumPrefix = "sha256 "

// Encode returns the stored form: a line of JSON, the mapping's record, and a line
// with the checksum of both.
func Encode(m Manifest) ([]byte, error) {
	m.Version = Version
	head, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	encoded, err := record.Encode(m.Record)
	if err != nil {
		return nil, err
	}
	b := append(append(head, '\n'), encoded...)
	sum := sha256.Sum256(b)
	return append(b, sumPrefix+hex.EncodeToString(sum[:])+"\n"...), nil
}

// Decode reads a stored manifest. Nothing that does not hold as a whole is used.
func Decode(b []byte) (Manifest, error) {
	at := bytes.LastIndex(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) + 1
	text, found := strings.CutPrefix(string(b[at:]), sumPrefix)
	sum := sha256.Sum256(b[:at])
	if !found || text != hex.EncodeToString(sum[:])+"\n" {
		return Manifest{}, errors.New("damaged: the checksum does not hold")
	}
	head, stored, _ := bytes.Cut(b[:at], []byte("\n"))
	var m Manifest
	if err := json.Unmarshal(head, &m); err != nil {
		return Manifest{}, fmt.Errorf("not a boot manifest: %w", err)
	}
	if m.Version != Version {
		return Manifest{}, fmt.Errorf("boot manifest of version %d, this dmloop knows version %d", m.Version, Version)
	}
	var err error
	if m.Record, err = record.Decode(stored); err != nil {
		return Manifest{}, err
	}
	return m, m.check()
}

// errSealedOnF2FS refuses what no boot would find where it was saved.
var errSealedOnF2FS = errors.New("f2fs moves a sealed image whenever the kernel takes it for swap: unseal it, or keep it on ext4 or xfs")

// errUnnamed refuses images that no manifest can name.
var errUnnamed = errors.New("on FAT, exFAT and NTFS a file has no number that it keeps, so that no boot could tell whether it is the image: keep it on ext4 or xfs")

// check refuses values that no saved manifest has.
func (m Manifest) check() error {
	switch fs := fstype.Of(m.Host.Filesystem); {
	case m.Way != Verify && m.Way != BeforeMount:
		return fmt.Errorf("unknown way %q", m.Way)
	case m.Fallback != Shell && m.Fallback != Loop:
		return fmt.Errorf("unknown fallback %q", m.Fallback)
	case !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path || m.Path == "/":
		return fmt.Errorf("image path %q", m.Path)
	case m.Host.UUID == "" || m.Host.Sectors == 0:
		return errors.New("the host is not described")
	case fs.Bare:
		return errUnnamed
	case !fs.Known() || fs.OwnAddresses:
		return fmt.Errorf("unsupported host file system %q", m.Host.Filesystem)
	case m.Record.Sealed && fs.SwapMoves:
		return errSealedOnF2FS
	}
	if err := dmtable.CheckName(m.Host.Shim); err != nil {
		return err
	}
	segments, err := m.Record.Table.Segments()
	if err != nil {
		return err
	}
	for _, s := range segments {
		if s.Device != m.Host.Base || s.End() > m.Host.Sectors {
			return fmt.Errorf("the table names sectors %d-%d of %s, which the host's device does not have", s.Start, s.End()-1, s.Device)
		}
	}
	return nil
}

// Table returns the record's table with the device that is below the shim now.
func (m Manifest) Table(base dmtable.Device) (dmtable.Table, error) {
	segments, err := m.Record.Table.Segments()
	if err != nil {
		return nil, err
	}
	for i := range segments {
		segments[i].Device = base
	}
	return dmtable.Build(segments)
}

// HostDifferences compares the device that was found with the one that was saved. One
// that grew holds all that it held. One that shrank was shrunk with its file system,
// which moves files that lay beyond its new end.
func (m Manifest) HostDifferences(sectors dmtable.Sectors, partUUID string) []string {
	var found []string
	if sectors < m.Host.Sectors {
		found = append(found, fmt.Sprintf("the device of the host file system has %d sectors and had %d", sectors, m.Host.Sectors))
	}
	if !strings.EqualFold(partUUID, m.Host.PartUUID) {
		found = append(found, fmt.Sprintf("the host file system is on partition %s and was on %s", orNone(partUUID), orNone(m.Host.PartUUID)))
	}
	return found
}

// Differences compares the image as it is with the one that was saved.
func (m Manifest) Differences(id image.Identity, layout extents.Layout) []string {
	was := m.Record.Image
	var found []string
	id.Major, id.Minor = was.Major, was.Minor // the host may have another number today
	if id.FileID != was.FileID {
		found = append(found, "it is not the file that was saved")
	}
	if id.Size != was.Size {
		found = append(found, fmt.Sprintf("it has %d bytes and had %d", id.Size, was.Size))
	}
	if diff := extents.Diff(m.Record.Layout, layout); diff != "" {
		found = append(found, "it lies elsewhere: "+diff)
	}
	return found
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
