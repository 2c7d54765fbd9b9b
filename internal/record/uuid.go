package record

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
)

// UUIDPrefix begins the device-mapper uuid of every mapping; lsblk shows the part
// before the dash as the device's type. ShimPrefix begins that of every shim.
const (
	UUIDPrefix = "DMLOOP-"
	ShimPrefix = "DMLOOPSHIM-"
)

// NewUUID returns a mapping's device-mapper uuid, DMLOOP-<32 hex>-NAME. The hex
// part is id when it is not empty (32 hex digits, dashes allowed), otherwise random.
func NewUUID(name, id string) (string, error) {
	hexID, err := hexPart(id)
	if err != nil {
		return "", err
	}
	return UUIDPrefix + hexID + "-" + name, nil
}

// isUUID reports whether uuid is one that NewUUID makes for name.
func isUUID(uuid, name string) bool {
	id, ok := strings.CutPrefix(uuid, UUIDPrefix)
	if !ok {
		return false
	}
	if id, ok = strings.CutSuffix(id, "-"+name); !ok || len(id) != 32 {
		return false
	}
	h, err := hexPart(id)
	return err == nil && h == id
}

// NameInUUID returns the name of the mapping whose device has this uuid, also when
// somebody has renamed the device.
func NameInUUID(uuid string) (name string, ok bool) {
	if at := len(UUIDPrefix) + 32 + 1; len(uuid) > at {
		name = uuid[at:]
	}
	return name, isUUID(uuid, name)
}

// NewShimUUID returns the device-mapper uuid of a shim called name.
func NewShimUUID(name string) (string, error) {
	hexID, err := hexPart("")
	if err != nil {
		return "", err
	}
	return ShimPrefix + hexID + "-" + name, nil
}

func hexPart(id string) (string, error) {
	if id != "" {
		h := strings.ToLower(strings.ReplaceAll(id, "-", ""))
		if raw, err := hex.DecodeString(h); err != nil || len(raw) != 16 {
			return "", fmt.Errorf("%q is not a UUID: 32 hexadecimal digits are needed", id)
		}
		return h, nil
	}
	var raw [16]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("making a uuid: %w", err)
	}
	return hex.EncodeToString(raw[:]), nil
}

// Number returns the 32 hexadecimal digits in the uuid of a mapping's device.
func Number(uuid string) (digits string, ok bool) {
	if _, ok := NameInUUID(uuid); !ok {
		return "", false
	}
	return uuid[len(UUIDPrefix) : len(UUIDPrefix)+32], true
}
