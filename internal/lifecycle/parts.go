package lifecycle

import (
	"errors"
	"fmt"

	"dmloop/internal/dm"
	"dmloop/internal/manifest"
)

// partUUID is the device-mapper uuid of a partition inside a mapping, as kpartx
// forms it.
func partUUID(number int, mapping string) string { return fmt.Sprintf("part%d-%s", number, mapping) }

// removeParts removes the partition devices on top of a mapping, last first.
func (s *System) removeParts(conn *dm.Conn, m *manifest.Manifest) error {
	for i := len(m.Parts) - 1; i >= 0; i-- {
		p := m.Parts[i]
		gone, err := s.removeDevice(conn, p.Name, partUUID(p.Number, m.UUID))
		if err == nil && !gone {
			err = errors.New("removal is pending until its last user closes it")
		}
		if err != nil {
			return fmt.Errorf("partition %s: %w", p.Name, err)
		}
	}
	return nil
}
