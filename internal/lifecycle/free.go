package lifecycle

import (
	"errors"
	"fmt"

	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
)

// CanMap refuses what Map refuses whatever the image is like: a request that means
// nothing, an image that is mapped already, a name that is taken. Without root, or
// without device-mapper, what cannot be seen is not refused.
func (s *System) CanMap(path string, o MapOptions) error {
	name, uuid, err := o.request(path)
	if err != nil {
		return err
	}
	found, err := find(path)
	if err != nil {
		return err
	}
	defer found.Close()
	return s.canMap(found, name, uuid)
}

func (s *System) canMap(found *image.Found, name, uuid string) error {
	store, err := s.openStore(false)
	if fault.ClassOf(err) == fault.NotPermitted {
		s.log.Warn("not checked without root: whether the name is free", "name", name)
		return nil
	}
	if err != nil {
		return err
	}
	if store != nil {
		defer store.Close()
		if err := errors.Join(s.imageFree(store, found), recordFree(store, name)); err != nil {
			return err
		}
	}
	conn, err := s.mapper()
	if err != nil {
		return nil // Map says so
	}
	return deviceFree(conn, name, uuid)
}

// nameFree refuses a name or uuid that a mapping or another device has.
func nameFree(store *record.Store, conn *mapper.Mapper, name, uuid string) error {
	if err := recordFree(store, name); err != nil {
		return err
	}
	return deviceFree(conn, name, uuid)
}

func recordFree(store *record.Store, name string) error {
	_, err := store.Head(name)
	switch {
	case err == nil:
		return &fault.Error{Class: fault.Busy, Subject: name, Message: "a mapping of this name exists", Remedy: advice.SeeStatus.Of(name)}
	case errors.Is(err, record.ErrNotFound):
		return nil
	}
	return err
}

func deviceFree(conn *mapper.Mapper, name, uuid string) error {
	for _, ref := range []dm.Ref{dm.ByName(name), dm.ByUUID(uuid)} {
		info, err := conn.Info(ref)
		if err == nil {
			return &fault.Error{Class: fault.Busy, Subject: name, Message: fmt.Sprintf("the device-mapper device %s has this name or uuid", info.Name),
				Remedy: advice.NameMapping}
		}
		if !errors.Is(err, dm.ErrNotFound) {
			return err
		}
	}
	return nil
}

// NotMapped refuses an image that is mapped, as far as the caller may see that.
func (s *System) NotMapped(found *image.Found) error {
	store, err := s.openStore(false)
	if store == nil || err != nil {
		if fault.ClassOf(err) == fault.NotPermitted {
			return nil // the image's pins refuse him
		}
		return err
	}
	defer store.Close()
	return s.imageFree(store, found)
}

// imageFree refuses an image that has a record already. It looks at the inode
// without opening the file, which a guard would deny.
func (s *System) imageFree(store *record.Store, found *image.Found) error {
	path := found.Given()
	m, err := findByImage(store, found.Identity())
	if errors.Is(err, record.ErrNotFound) {
		return nil
	}
	var untold *fault.Error
	if errors.As(err, &untold) {
		untold.Subject = path
		return untold
	}
	if err != nil {
		return unusableRecord(store, path, "cannot tell whether it is mapped already", err)
	}
	return &fault.Error{Class: fault.Busy, Subject: path, Message: fmt.Sprintf("mapped already as %s", m.Name), Remedy: advice.SeeStatus.Of(m.Name)}
}
