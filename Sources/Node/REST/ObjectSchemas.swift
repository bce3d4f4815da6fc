import API

/// The objects of the API, as OpenAPI shows them. A test holds each against what the types in `API/Types` encode.
enum ObjectSchemas {
    static let all: [ObjectSchema] =
        errors + volumes + targets + snapshots + evidence + agents + guests + jobs + status + history + pool

    static let byName = Dictionary(uniqueKeysWithValues: all.map { ($0.name, $0) })

    static let consistency = Schema.choice(Consistency.allCases.map(\.rawValue))
    private static let access = Schema.choice(PortalAccess.allCases.map(\.rawValue))
    private static let policy = Schema.choice(["require", "allowLower"])
    private static let layer = Schema.choice(ProtectionLayer.allCases.map(\.rawValue))

    private static let errors = [
        ObjectSchema(
            "Failure", "The body of every answer that is not a success.",
            [
                required("code", .string, "A stable word for programs."),
                required("message", .string, "What happened, to what."),
                optional("hint", .string, "What to do next."),
            ])
    ]

    private static let volumes = [
        ObjectSchema(
            "VolumeInfo", "A block device in the pool.",
            [
                required("id", .string), required("name", .string), required("sizeBytes", .bytes),
                required("mappedBytes", .bytes, "Bytes that the volume's head maps, shared with snapshots or not."),
                required("naa", .string, "The NAA identifier that initiators see, 32 hexadecimal digits."),
                required("createdAt", .date), required("exports", .array(.named("ExportInfo"))),
                optional("cloneOf", .string, "Name of the snapshot that it was cloned from."),
                required("initiators", .array(.string), "Initiators with a session that reaches the volume now."),
                required("snapshotCount", .integer(0...Int.max)),
                optional("space", .named("VolumeSpaceInfo"), "Only in the answer for one volume."),
                optional("uses", .array(.named("VolumeUse")), "Only in the answer for one volume."),
            ]),
        ObjectSchema(
            "VolumeUse", "Something on a host that lies on a volume, as the last look at its agent found it.",
            [
                required("agent", .string), required("plugin", .string), required("layer", layer),
                required("resource", .string), required("label", .string), optional("state", .string, "E.g. running."),
            ]),
        ObjectSchema(
            "ExportInfo", "Where a volume or a snapshot's member is reachable.",
            [
                required("iqn", .string), required("lun", .integer(0...16_383)),
                required("portals", .array(.string), "HOST:PORT of each portal."),
            ]),
        ObjectSchema(
            "VolumeCreateRequest", "",
            [
                required("name", .string, "1 to 128 characters of letters, digits and . _ : @ -"),
                required("sizeBytes", .integer(4096...(64 << 40)), "A multiple of 4096."),
                optional("export", .boolean, "Also make a target with the volume as LUN 0. Default true."),
            ]),
        ObjectSchema(
            "VolumeResizeRequest", "",
            [required("sizeBytes", .integer(4096...(64 << 40)), "Not less than now; a multiple of 4096.")]),
        ObjectSchema(
            "RevertRequest", "Puts volumes back to what a snapshot holds; what they hold now is kept as a snapshot.",
            [
                required("volumes", .array(.string)), optional("snapshot", .string, "Id or name; not with undo."),
                optional("undo", .boolean, "Revert to what the last revert of the volumes replaced."),
                optional("drive", .boolean, "Have the agents stop what uses the volumes before, and start it after."),
                optional("dryRun", .boolean, "Say what would be done and do nothing."),
            ]),
        ObjectSchema(
            "RevertResult", "What a revert did.",
            [
                required("volumes", .array(.string)), required("revertedTo", .string),
                optional("keptSnapshot", .string, "Id of the snapshot that keeps what was there before."),
                required("steps", .array(.string)),
            ]),
        ObjectSchema(
            "CloneRequest", "",
            [
                required("snapshot", .string, "Id or name."),
                optional("volume", .string, "The member; may be left out where the snapshot has one."),
                required("name", .string, "The new volume's."),
                optional("export", .boolean, "Also make a target with the clone as LUN 0. Default true."),
            ]),
    ]

    private static let targets = [
        ObjectSchema(
            "PortalGroupInfo", "A portal group, which hosts see as a target port group (ALUA).",
            [
                required("group", .integer(0...65_535)), required("access", access),
                required("portals", .array(.string), "HOST:PORT of each portal."),
            ]),
        ObjectSchema("PortalGroupRequest", "", [required("access", access)]),
        ObjectSchema(
            "TargetInfo", "An iSCSI target.",
            [
                required("iqn", .string), required("portals", .array(.string)),
                required("luns", .array(.named("LUNInfo"))),
                required("access", .array(.named("AccessInfo")), "Empty means closed."),
                required("sessions", .array(.named("SessionInfo"))),
            ]),
        ObjectSchema(
            "LUNInfo", "",
            [
                required("lun", .integer(0...16_383)), required("volume", .string), required("naa", .string),
                required("isReadOnly", .boolean),
            ]),
        ObjectSchema(
            "AccessInfo", "",
            [
                required("initiator", .string, "An initiator name, or any."), optional("chapUser", .string),
                required("isMutual", .boolean, "The target proves itself, too."),
            ]),
        ObjectSchema(
            "SessionInfo", "An initiator that is logged in.",
            [
                required("id", .integer(0...Int.max)), required("target", .string, "Empty for a discovery session."),
                required("initiator", .string), required("address", .string, "HOST:PORT of the initiator."),
                required("tsih", .integer(0...65_535)), required("portalGroup", .integer(1...65_535)),
                required("connectedAt", .date), required("commands", .integer(0...Int.max)),
                required("failedCommands", .integer(0...Int.max)), required("readBytes", .bytes),
                required("writtenBytes", .bytes), required("reads", .named("LatencyInfo")),
                required("writes", .named("LatencyInfo")),
            ]),
        ObjectSchema(
            "LatencyInfo", "From the arrival of a command to its answer.",
            [
                required("count", .integer(0...Int.max)), required("meanSeconds", .seconds),
                required("medianSeconds", .seconds, "Rounded up to 16 µs, 32 µs, … 16.8 s."),
                required("p99Seconds", .seconds, "Rounded in the same way."),
            ]),
        ObjectSchema(
            "DiscoveryInfo", "Who may ask which targets there are.",
            [
                required(
                    "access", .array(.named("AccessInfo")),
                    "Empty means anybody, each seeing the targets that it may log in to.")
            ]),
        ObjectSchema(
            "TargetAllowRequest", "",
            [
                required("initiator", .string, "An initiator name, or any."), optional("chapUser", .string),
                optional("chapSecret", .string, "12 to 255 bytes."), optional("mutualUser", .string),
                optional("mutualSecret", .string, "12 to 255 bytes, another than chapSecret."),
            ]),
        ObjectSchema(
            "TargetDenyRequest", "", [required("initiator", .string, "As in a rule of the target; its sessions end.")]),
    ]

    private static let snapshots = [
        ObjectSchema(
            "SnapshotInfo", "A snapshot of one or several volumes, taken in one cut.",
            [
                required("id", .string), required("name", .string),
                required("kind", .choice(["user", "beforeRevert"])), required("volumes", .array(.string)),
                required("createdAt", .date), required("requestedConsistency", consistency),
                required("achievedConsistency", consistency),
                required("quietSeconds", .seconds, "The longest time that any member was quiet."),
                required("sizeBytes", .bytes),
                required("clones", .array(.string), "While there are any, the snapshot cannot be deleted."),
                optional("evidence", .named("EvidenceInfo"), "Only in the answer for one snapshot."),
                optional("space", .named("SpaceInfo"), "For one snapshot, and in lists that ask for it."),
            ]),
        ObjectSchema(
            "SnapshotCreateRequest", "",
            [
                required("volumes", .array(.string)), optional("name", .string, "Made from volume and time if absent."),
                optional("consistency", consistency, "Default crash."), optional("policy", policy, "Default require."),
                optional("leaseSeconds", .number, "2 to 60; default 10."),
            ]),
        ObjectSchema(
            "SnapshotPreview", "What a snapshot would do, with nothing touched.",
            [
                required("name", .string, "The name that it would have."), required("volumes", .array(.string)),
                required("requestedConsistency", consistency), required("policy", policy),
                required("attainableConsistency", consistency, "Reached if everything goes as found."),
                optional("refusal", .string, "Why it would fail before anything was touched."),
                required("reasons", .array(.string), "Why less is attainable than requested."),
                required("members", .array(.named("PreviewMember"))),
                required("remarks", .array(.string), "Warnings, and what stands in the way."),
                required("estimatedQuietSeconds", .seconds, "The longest that any member would be quiet."),
                required("isEstimateFromHistory", .boolean, "False where a usual value was taken for a member."),
            ]),
        ObjectSchema(
            "PreviewMember", "Something that a snapshot would bring to rest.",
            [
                required("agent", .string), required("plugin", .string), required("layer", layer),
                required("resource", .string), required("label", .string), required("volumes", .array(.string)),
                optional("blockedBy", .string, "Why it cannot be brought to rest."),
                optional("quiesceSeconds", .seconds, "How long it took before."),
            ]),
        ObjectSchema(
            "SnapshotExportRequest", "",
            [
                optional("volume", .string, "The member; may be left out where the snapshot has one."),
                required("initiator", .string, "The only initiator that may log in."),
                optional("chapUser", .string, "Together with chapSecret."),
                optional("chapSecret", .string, "12 to 255 bytes, which the initiator must prove to know."),
            ]),
    ]

    private static let evidence = [
        ObjectSchema(
            "EvidenceInfo", "What proves the achieved consistency; see docs/evidence.md.",
            [
                required("version", .integer(1...1)), required("requested", consistency), required("policy", policy),
                required("achieved", consistency),
                required("reasons", .array(.string), "Why it is less than requested."),
                required("cut", .named("CutInfo")), required("members", .array(.named("MemberEvidence"))),
            ]),
        ObjectSchema(
            "CutInfo", "The cut, on the node's clock.",
            [
                required("epoch", .integer(0...Int.max)), required("startedAt", .date),
                required("durationSeconds", .seconds),
            ]),
        ObjectSchema(
            "MemberEvidence", "What one member proved about its quiet window.",
            [
                required("agent", .string), required("plugin", .string), required("layer", layer),
                required("resource", .string), required("label", .string), required("volumes", .array(.string)),
                required("heldBeforeCut", .boolean), required("releasedAfterCut", .boolean),
                required("stillHeldAtRelease", .boolean), required("quietSeconds", .seconds),
                required("quiesceSeconds", .seconds), optional("failure", .string),
                required("artifacts", .map(.string), "What a restore may need."),
                optional("level", consistency, "What its quiesce made of the data."),
            ]),
    ]

    private static let agents = [
        ObjectSchema(
            "AgentInfo", "A host agent.",
            [
                required("name", .string), required("address", .string, "HOST:PORT"), required("enrolledAt", .date),
                optional("lastSeenAt", .date), required("isReachable", .boolean), optional("version", .string),
                required("plugins", .array(.named("PluginInfo"))), required("certificateFingerprint", .string),
                optional("resources", .array(.named("ResourceInfo")), "Only in the answer for one agent."),
                optional("failure", .string, "Why it is not reachable."),
                optional("certificateExpiresAt", .date, "The node renews it when a third of its life is left."),
            ]),
        ObjectSchema(
            "PluginInfo", "",
            [required("name", .string), required("version", .string), required("layer", layer)]),
        ObjectSchema(
            "ResourceInfo", "Something that a plug-in can bring to rest.",
            [
                required("plugin", .string), required("layer", layer), required("id", .string),
                required("label", .string), required("volumes", .array(.string)), required("details", .map(.string)),
                optional("level", consistency, "What its quiesce makes of the data, where its layer does not say."),
            ]),
        ObjectSchema(
            "AgentTokenRequest", "",
            [
                required("name", .string, "The name the agent will have."),
                optional("validSeconds", .integer(10...86_400), "Default 3600."),
            ]),
        ObjectSchema(
            "AgentToken", "Shown once; works once.",
            [required("token", .string), required("name", .string), required("expiresAt", .date)]),
        ObjectSchema(
            "EnrollRequest", "",
            [
                required("token", .string), required("address", .string, "HOST:PORT where the node calls the agent."),
                required("certificateRequest", .string, "PKCS#10, PEM."), required("version", .string),
            ]),
        ObjectSchema(
            "EnrollResponse", "",
            [
                required("name", .string), required("nodeID", .string), required("certificate", .string, "PEM"),
                required("authority", .string, "PEM"),
            ]),
    ]

    private static let jobs = [
        ObjectSchema(
            "JobInfo", "Long work: accepted with 202, then polled or watched.",
            [
                required("id", .string), required("kind", .string, "E.g. snapshot.create."),
                required("subject", .string), required("state", .choice(["queued", "running", "succeeded", "failed"])),
                required("createdAt", .date), optional("endedAt", .date),
                required("steps", .array(.named("JobStep"))), optional("result", .named("JobResult")),
                optional("failure", .named("Failure")),
            ]),
        ObjectSchema(
            "JobStep", "",
            [
                required("name", .string),
                required("state", .choice(["running", "succeeded", "failed", "compensated"])),
                required("startedAt", .date), optional("seconds", .seconds), optional("detail", .string),
            ]),
        ObjectSchema(
            "JobResult", "What the job made, by its kind.",
            [
                optional("snapshot", .named("SnapshotInfo")), optional("revert", .named("RevertResult")),
                optional("scrub", .named("ScrubInfo")),
                optional("guests", .array(.named("GuestRestoreResult"))),
            ]),
    ]

    private static let status = [
        ObjectSchema(
            "NodeStatus", "The node at a glance.",
            [
                required("nodeID", .string), required("version", .string), required("uptimeSeconds", .seconds),
                required("apiAddress", .string), required("iscsiAddress", .string),
                required("dataDirectory", .string), required("pool", .named("PoolStatus")),
                required("volumeCount", .integer(0...Int.max)), required("snapshotCount", .integer(0...Int.max)),
                required("agentCount", .integer(0...Int.max)), required("reachableAgentCount", .integer(0...Int.max)),
                required("runningJobs", .integer(0...Int.max)),
            ]),
        ObjectSchema(
            "PoolStatus", "",
            [
                required("state", .choice(["healthy", "readOnly", "full"])), required("sizeBytes", .bytes),
                required("usedBytes", .bytes), required("freeBytes", .bytes), optional("failure", .string),
                required("alerts", .array(.named("PoolAlert")), "What somebody should look at, the worst first."),
            ]),
        ObjectSchema(
            "HealthInfo", "",
            [required("status", .choice(["ok", "failing"])), required("checks", .map(.string))]),
    ]
}
