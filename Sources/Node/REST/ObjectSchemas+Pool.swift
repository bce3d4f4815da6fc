import API

extension ObjectSchemas {
    static let pool = [
        ObjectSchema(
            "PoolInfo", "The pool that volumes and snapshots live in.",
            [
                required("path", .string, "The file or block device."),
                required("backend", .string, "How calls reach the disk: pread or uring."),
                required("state", .choice(["healthy", "readOnly", "full"])), optional("failure", .string),
                required("sizeBytes", .bytes), required("usedBytes", .bytes), required("freeBytes", .bytes),
                required("usedPercent", .number, "Of what is used and free together."),
                required("softThresholdPercent", .integer(1...99)), required("journalSizeBytes", .bytes),
                required("journalUsedBytes", .bytes),
                required("generation", .integer(0...Int.max), "Checkpoints written since the pool was made."),
                required("epoch", .integer(0...Int.max)),
                required("superblockCopies", .array(.named("SuperblockCopyInfo"))),
                required("memory", .named("PoolMemoryInfo")), required("reclaim", .named("ReclaimInfo")),
                optional("scrub", .named("ScrubInfo"), "The one that runs, or the last one."),
                required("alerts", .array(.named("PoolAlert"))),
            ]),
        ObjectSchema(
            "SuperblockCopyInfo", "Two copies hold the newest generation, two the one before.",
            [
                required("offset", .bytes), optional("generation", .integer(0...Int.max)),
                required("isGood", .boolean),
            ]),
        ObjectSchema(
            "PoolMemoryInfo", "What the pool holds in memory.",
            [
                required("limitBytes", .bytes, "What it may take for all that grows with its use."),
                required("overlayBytes", .bytes, "Mappings that are not in the map on disk yet."),
                required("cacheBytes", .bytes), required("cacheLimitBytes", .bytes), required("bitmapBytes", .bytes),
            ]),
        ObjectSchema(
            "ReclaimInfo", "How far the pool is with freeing what was deleted.",
            [
                required("pending", .integer(0...Int.max), "Deleted things whose blocks are not all free yet."),
                required(
                    "waiting", .integer(0...Int.max),
                    "Those of them that several states stand on: they come free when all but one are deleted, too."),
                required("sizeBytes", .bytes, "Of those that do not wait."),
                required("doneBytes", .bytes, "How much of that was looked through."),
                required("freedBytes", .bytes, "Since the node was started."),
                required("leavingBytes", .bytes, "Free, and for a moment still counted as used."),
            ]),
        ObjectSchema(
            "PoolAlert", "Something about the pool that somebody should look at.",
            [
                required("kind", .string, "failed, readOnly, full, softThreshold, damage or superblockRepaired."),
                required("message", .string), required("hint", .string),
            ]),
        ObjectSchema(
            "ScrubInfo", "A scrub: everything that the pool refers to, read and compared with its checksums.",
            [
                required("state", .choice(["running", "finished", "cancelled"])), required("startedAt", .date),
                optional("endedAt", .date), required("bytesRead", .bytes), required("expectedBytes", .bytes),
                required("dataBlocks", .integer(0...Int.max)), required("mapPages", .integer(0...Int.max)),
                required("superblockCopies", .integer(0...Int.max)),
                required("repairedSuperblocks", .integer(0...Int.max)),
                required("damageCount", .integer(0...Int.max)),
                required("damage", .array(.string), "The first of what is wrong; at most 256."),
            ]),
        ObjectSchema(
            "ScrubRequest", "",
            [
                optional("bytesPerSecond", .integer(1 << 20...Int.max), "The most to read in a second."),
                optional("restart", .boolean, "Begin anew where a scrub was cancelled."),
            ]),
        ObjectSchema(
            "PoolGrowRequest", "",
            [
                optional(
                    "sizeBytes", .integer(0...Int.max),
                    "For a file the most that it may occupy; without it, all of a block device.")
            ]),
    ]
}
