import API

extension ObjectSchemas {
    static let guests = [
        ObjectSchema(
            "GuestInfo", "A virtual machine that lies on volumes, or of which a snapshot holds a copy.",
            [
                required("name", .string), required("uuid", .string), required("agent", .string),
                required("state", .choice(["running", "paused", "off", "other", "unknown", "deleted"])),
                required("volumes", .array(.string)),
                required("disks", .map(.string), "By target (vda): where the disk lies."),
                optional("mode", .string, "How it is brought to rest: agent, pause, memory, none."),
                required("snapshots", .array(.named("GuestSnapshot")), "Newest first; a list has only the newest."),
            ]),
        ObjectSchema(
            "GuestSnapshot", "A snapshot, as one guest sees it.",
            [
                required("name", .string), required("createdAt", .date), required("consistency", consistency),
                required("hasMemory", .boolean, "The guest can go on where it was."),
            ]),
        ObjectSchema(
            "GuestRestoreRequest", "Restores guests, without touching others that share their volumes.",
            [
                required("guests", .array(.string), "Names or UUIDs."),
                optional("from", .string, "A snapshot or a clone; default: the newest snapshot that holds the guest."),
                optional("beside", .string, "Restore one guest under this name, beside the original."),
                optional("disks", .array(.string), "Targets (vda); default: all that lie on volumes."),
                optional("start", .boolean, "Default: what ran is started again, and what is new."),
                optional("memory", .boolean, "Go on with the memory image where there is one. Default true."),
                optional("undo", .boolean, "Take the last restore of the guests back."),
                optional("dryRun", .boolean, "Say what would be done and do nothing."),
            ]),
        ObjectSchema(
            "GuestRestoreResult", "What the restore of one guest did.",
            [
                required("restoreID", .string), required("guest", .string), required("uuid", .string),
                required("agent", .string), required("snapshot", .string), required("steps", .array(.string)),
                required("reverted", .array(.string), "Volumes that were reverted."),
                optional("keptSnapshot", .string, "Id of the snapshot that keeps what they held."),
                required("clones", .array(.string), "Volumes that were made for the guest."),
                required("state", .map(.string), "What an undo needs."),
                optional("undoOf", .string, "The restore that this one took back."),
            ]),
    ]
}
