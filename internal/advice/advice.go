// Package advice names what can be done about what dmloop refuses. Which words that gets, and
// which commands they name, is decided where they are printed: in cmd/dmloop.
package advice

import "dmloop/extents"

// About files and their attributes.
var (
	MakeImage               = extents.Remedy{Way: "make-image"}
	CreateOne               = extents.Remedy{Way: "create-one"}
	FollowedLink            = extents.Remedy{Way: "followed-link"}
	OffsetBetween           = extents.Remedy{Way: "offset-between"}
	SizeTo                  = extents.Remedy{Way: "size-to"}
	LimitBetween            = extents.Remedy{Way: "limit-between"}
	LimitOf                 = extents.Remedy{Way: "limit-of"}
	SizeOf                  = extents.Remedy{Way: "size-of"}
	MapPartitions           = extents.Remedy{Way: "map-partitions"}
	LeaveFooterOut          = extents.Remedy{Way: "leave-footer-out"}
	ConvertFixedVHD         = extents.Remedy{Way: "convert-fixed-vhd"}
	ConvertVHD              = extents.Remedy{Way: "convert-vhd"}
	ConvertVHDX             = extents.Remedy{Way: "convert-vhdx"}
	ConvertQCOW             = extents.Remedy{Way: "convert-qcow"}
	ConvertVMDK             = extents.Remedy{Way: "convert-vmdk"}
	ConvertSparse           = extents.Remedy{Way: "convert-sparse"}
	Gunzip                  = extents.Remedy{Way: "gunzip"}
	Unxz                    = extents.Remedy{Way: "unxz"}
	Unzstd                  = extents.Remedy{Way: "unzstd"}
	ConvertVDI              = extents.Remedy{Way: "convert-vdi"}
	ConvertQCOW1            = extents.Remedy{Way: "convert-qcow1"}
	ConvertDMG              = extents.Remedy{Way: "convert-dmg"}
	Bunzip                  = extents.Remedy{Way: "bunzip"}
	MountReadOnly           = extents.Remedy{Way: "mount-read-only"}
	ClearFolderFlag         = extents.Remedy{Way: "clear-folder-flag"}
	ClearFolderDAX          = extents.Remedy{Way: "clear-folder-dax"}
	ClearFolderRealtime     = extents.Remedy{Way: "clear-folder-realtime"}
	ClearJournalFlag        = extents.Remedy{Way: "clear-journal-flag"}
	MountWithoutJournalling = extents.Remedy{Way: "mount-without-journalling"}
	ClearJournalDefault     = extents.Remedy{Way: "clear-journal-default"}
	AddExtents              = extents.Remedy{Way: "add-extents"}
	ClearCompression        = extents.Remedy{Way: "clear-compression"}
	CopyInOnePiece          = extents.Remedy{Way: "copy-in-one-piece"}
	CloseAndProvision       = extents.Remedy{Way: "close-and-provision"}
	UnpinF2FS               = extents.Remedy{Way: "unpin-f2-fs"}
	ClearFlag               = extents.Remedy{Way: "clear-flag"}
	ClearOthersFlag         = extents.Remedy{Way: "clear-others-flag"}
	ClearPins               = extents.Remedy{Way: "clear-pins"}
	ClearEitherPin          = extents.Remedy{Way: "clear-either-pin"}
	Unpin                   = extents.Remedy{Way: "unpin"}
	MakeAnew                = extents.Remedy{Way: "make-anew"}
)

// About file systems and their mounts.
var (
	MoveImage          = extents.Remedy{Way: "move-image"}
	MoveToSealable     = extents.Remedy{Way: "move-to-sealable"}
	CopyImage          = extents.Remedy{Way: "copy-image"}
	CreateElsewhere    = extents.Remedy{Way: "create-elsewhere"}
	CopyOrLoop         = extents.Remedy{Way: "copy-or-loop"}
	MountWithoutOption = extents.Remedy{Way: "mount-without-option"}
	EnableCheckpoint   = extents.Remedy{Way: "enable-checkpoint"}
	CheckAndMount      = extents.Remedy{Way: "check-and-mount"}
	ReadDevices        = extents.Remedy{Way: "read-devices"}
	OneDevice          = extents.Remedy{Way: "one-device"}
	RemountWritable    = extents.Remedy{Way: "remount-writable"}
	MakeWritable       = extents.Remedy{Way: "make-writable"}
	MakeHostWritable   = extents.Remedy{Way: "make-host-writable"}
	MapReadOnly        = extents.Remedy{Way: "map-read-only"}
	MountWithoutLFS    = extents.Remedy{Way: "mount-without-lfs"}
	PinFirst           = extents.Remedy{Way: "pin-first"}
	OtherMount         = extents.Remedy{Way: "other-mount"}
	Thaw               = extents.Remedy{Way: "thaw"}
	WaitForBalance     = extents.Remedy{Way: "wait-for-balance"}
)

// About who uses the file.
var (
	AskScanner     = extents.Remedy{Way: "ask-scanner"}
	SeeLease       = extents.Remedy{Way: "see-lease"}
	AwaitProvision = extents.Remedy{Way: "await-provision"}
	SeeReaders     = extents.Remedy{Way: "see-readers"}
	SeeOpeners     = extents.Remedy{Way: "see-openers"}
	SeeWriters     = extents.Remedy{Way: "see-writers"}
	SeeWriter      = extents.Remedy{Way: "see-writer"}
	StopWriters    = extents.Remedy{Way: "stop-writers"}
	SeeSwapon      = extents.Remedy{Way: "see-swapon"}
	SeeSwapoff     = extents.Remedy{Way: "see-swapoff"}
	SeeChattr      = extents.Remedy{Way: "see-chattr"}
	MapByItsPath   = extents.Remedy{Way: "map-by-its-path"}
	RootsAlone     = extents.Remedy{Way: "roots-alone"}
	ChownRoot      = extents.Remedy{Way: "chown-root"}
	Chmod600       = extents.Remedy{Way: "chmod600"}
)

// About devices below the file system.
var (
	LargerBlocks     = extents.Remedy{Way: "larger-blocks"}
	UnmapOther       = extents.Remedy{Way: "unmap-other"}
	TryDeviceAgain   = extents.Remedy{Way: "try-device-again"}
	UnmapInner       = extents.Remedy{Way: "unmap-inner"}
	RemoveDevice     = extents.Remedy{Way: "remove-device"}
	UnmapElsewhere   = extents.Remedy{Way: "unmap-elsewhere"}
	MountThroughShim = extents.Remedy{Way: "mount-through-shim"}
	PersistShim      = extents.Remedy{Way: "persist-shim"}
	ShimOnTop        = extents.Remedy{Way: "shim-on-top"}
	ResumeChanged    = extents.Remedy{Way: "resume-changed"}
	ClearTable       = extents.Remedy{Way: "clear-table"}
	ResumeDevice     = extents.Remedy{Way: "resume-device"}
	SeeTable         = extents.Remedy{Way: "see-table"}
	UseShim          = extents.Remedy{Way: "use-shim"}
	ShimOnDevice     = extents.Remedy{Way: "shim-on-device"}
	UnmountForShim   = extents.Remedy{Way: "unmount-for-shim"}
	RemoveShim       = extents.Remedy{Way: "remove-shim"}
	UnmountShim      = extents.Remedy{Way: "unmount-shim"}
	ShimTheHost      = extents.Remedy{Way: "shim-the-host"}
)

// About seals and the kernel's claim.
var (
	Seal              = extents.Remedy{Way: "seal"}
	SealOrUnsafe      = extents.Remedy{Way: "seal-or-unsafe"}
	UseGuard          = extents.Remedy{Way: "use-guard"}
	UsePins           = extents.Remedy{Way: "use-pins"}
	UnmapOrSwapoff    = extents.Remedy{Way: "unmap-or-swapoff"}
	SealAnew          = extents.Remedy{Way: "seal-anew"}
	AdoptCopy         = extents.Remedy{Way: "adopt-copy"}
	AdoptOrSeal       = extents.Remedy{Way: "adopt-or-seal"}
	AdoptOrPlain      = extents.Remedy{Way: "adopt-or-plain"}
	FinishSeal        = extents.Remedy{Way: "finish-seal"}
	SealForThisKernel = extents.Remedy{Way: "seal-for-this-kernel"}
	DropMarkOrRestore = extents.Remedy{Way: "drop-mark-or-restore"}
	DropMark          = extents.Remedy{Way: "drop-mark"}
	SmallerBlocks     = extents.Remedy{Way: "smaller-blocks"}
	LongerFiles       = extents.Remedy{Way: "longer-files"}
	SayPinSwap        = extents.Remedy{Way: "say-pin-swap"}
	GrowBare          = extents.Remedy{Way: "grow-bare"}
	SealSaid          = extents.Remedy{Way: "seal-said"}
	MountForRoot      = extents.Remedy{Way: "mount-for-root"}
	CopyToNew         = extents.Remedy{Way: "copy-to-new"}
	FreeSwapPlace     = extents.Remedy{Way: "free-swap-place"}
	ReadAnew          = extents.Remedy{Way: "read-anew"}
	SeeKernelLog      = extents.Remedy{Way: "see-kernel-log"}
	FreeMemory        = extents.Remedy{Way: "free-memory"}
)

// About names, mappings and records.
var (
	NameMapping   = extents.Remedy{Way: "name-mapping"}
	NameShim      = extents.Remedy{Way: "name-shim"}
	ShorterName   = extents.Remedy{Way: "shorter-name"}
	SeeStatus     = extents.Remedy{Way: "see-status"}
	SeeList       = extents.Remedy{Way: "see-list"}
	Unmap         = extents.Remedy{Way: "unmap"}
	MapAgain      = extents.Remedy{Way: "map-again"}
	UnmapAndCheck = extents.Remedy{Way: "unmap-and-check"}
	UnmountCopy   = extents.Remedy{Way: "unmount-copy"}
	RemoveByHand  = extents.Remedy{Way: "remove-by-hand"}
	StopUsers     = extents.Remedy{Way: "stop-users"}
	ReleaseLater  = extents.Remedy{Way: "release-later"}
	DeferOrForce  = extents.Remedy{Way: "defer-or-force"}
	SeeLockHolder = extents.Remedy{Way: "see-lock-holder"}
	SeeFrozen     = extents.Remedy{Way: "see-frozen"}
	UnmapToGrow   = extents.Remedy{Way: "unmap-to-grow"}
	MapWhole      = extents.Remedy{Way: "map-whole"}
	CopyToGrow    = extents.Remedy{Way: "copy-to-grow"}
	CopyToShrink  = extents.Remedy{Way: "copy-to-shrink"}
	MapToResize   = extents.Remedy{Way: "map-to-resize"}
)

// About the guard.
var (
	KillGuard       = extents.Remedy{Way: "kill-guard"}
	ReachGuard      = extents.Remedy{Way: "reach-guard"}
	MapWithoutGuard = extents.Remedy{Way: "map-without-guard"}
	SeeGuardHelp    = extents.Remedy{Way: "see-guard-help"}
	GateAuto        = extents.Remedy{Way: "gate-auto"}
	AddParameter    = extents.Remedy{Way: "add-parameter"}
	ClearGate       = extents.Remedy{Way: "clear-gate"}
)

// About the caller and the kernel.
var (
	Sudo              = extents.Remedy{Way: "sudo"}
	LeaveNamespace    = extents.Remedy{Way: "leave-namespace"}
	AddCapability     = extents.Remedy{Way: "add-capability"}
	SeeSecurityModule = extents.Remedy{Way: "see-security-module"}
	LoadDeviceMapper  = extents.Remedy{Way: "load-device-mapper"}
)

// About partition tables.
var (
	NoPartScan   = extents.Remedy{Way: "no-part-scan"}
	UseKpartx    = extents.Remedy{Way: "use-kpartx"}
	UseLdmtool   = extents.Remedy{Way: "use-ldmtool"}
	OtherSectors = extents.Remedy{Way: "other-sectors"}
)

// About booting.
var (
	FewerExtents     = extents.Remedy{Way: "fewer-extents"}
	UpdateInitramfs  = extents.Remedy{Way: "update-initramfs"}
	RemoveKernel     = extents.Remedy{Way: "remove-kernel"}
	NameShimOption   = extents.Remedy{Way: "name-shim-option"}
	MountableFS      = extents.Remedy{Way: "mountable-fs"}
	UniqueUUID       = extents.Remedy{Way: "unique-uuid"}
	GiveMountPoint   = extents.Remedy{Way: "give-mount-point"}
	KeepImagesOn     = extents.Remedy{Way: "keep-images-on"}
	CheckImage       = extents.Remedy{Way: "check-image"}
	RepairFirst      = extents.Remedy{Way: "repair-first"}
	MountFromShim    = extents.Remedy{Way: "mount-from-shim"}
	WriteFstab       = extents.Remedy{Way: "write-fstab"}
	ChangeRoot       = extents.Remedy{Way: "change-root"}
	InstallInitramfs = extents.Remedy{Way: "install-initramfs"}
	FallBack         = extents.Remedy{Way: "fall-back"}
	GoOnOrRevert     = extents.Remedy{Way: "go-on-or-revert"}
	SeeBootList      = extents.Remedy{Way: "see-boot-list"}
	SeeTabManual     = extents.Remedy{Way: "see-tab-manual"}
	Usage            = extents.Remedy{Way: "usage"}
	DidYouMean       = extents.Remedy{Way: "did-you-mean"}
	SeeHelp          = extents.Remedy{Way: "see-help"}
)
