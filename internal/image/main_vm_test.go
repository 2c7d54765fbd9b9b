//go:build vmtest

package image

import (
	"testing"

	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }
