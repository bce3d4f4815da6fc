import API

// Space, promotion, differences, streams.

extension ObjectSchemas {
    static let history = [
        ObjectSchema(
            "SpaceInfo",
            "What a set of snapshots and volumes holds, blocks of data, of maps and of the evidence together.",
            [
                required("exclusiveBytes", .bytes, "What nothing outside of the set refers to."),
                required(
                    "freedBytes", .bytes,
                    "What deleting the set gives back; the rest once at most one successor of each snapshot is left."),
            ]),
        ObjectSchema(
            "SpaceRequest", "",
            [
                required("snapshots", .array(.string), "Ids or names."),
                optional("volumes", .array(.string), "Names; each stands for its head, without its snapshots."),
            ]),
        ObjectSchema(
            "VolumeSpaceInfo", "What a volume holds.",
            [
                required("headBytes", .bytes, "What its head alone refers to."),
                required("snapshotBytes", .bytes, "What deleting all its snapshots would free."),
                required("totalBytes", .bytes, "What deleting it with all its snapshots would free."),
            ]),
        ObjectSchema(
            "DiffLine", "One line of a diff.",
            [
                required("kind", .choice(DiffLine.Kind.allCases.map(\.rawValue))), optional("offset", .bytes),
                optional("lengthBytes", .bytes), optional("fromBytes", .bytes, "In the first line."),
                optional("toBytes", .bytes, "In the first line and the last."),
            ]),
        ObjectSchema(
            "ReceiveInfo", "A transfer of a snapshot that has begun and not ended.",
            [
                required("snapshot", .string, "Id."), required("name", .string),
                optional("from", .string, "Id of the older snapshot, of an increment."),
                required("volumes", .array(.string)),
                required("offsetBytes", .bytes, "How far it came on the way through the volumes' sizes."),
                required("sizeBytes", .bytes), required("resumeToken", .string), required("isActive", .boolean),
            ]),
        ObjectSchema(
            "PromoteResult", "",
            [
                required("volume", .named("VolumeInfo"), "The volume that was a clone."),
                required("snapshots", .array(.string), "The snapshots that are its own now, oldest first."),
                required("formerOwner", .string, "The volume that owned them, and is a clone now."),
            ]),
    ]
}
