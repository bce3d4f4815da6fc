import API

/// Snapshots and their evidence, for people.
enum SnapshotReport {
    /// With a column for what deleting each snapshot would free, where that was asked for.
    static func table(_ snapshots: [SnapshotInfo]) -> Table {
        let withSpace = snapshots.contains { $0.space != nil }
        return Table(
            [
                .left("NAME"), .left("VOLUMES"), .left("CREATED"), .left("ACHIEVED"), .left("REQUESTED"),
                .right("QUIET"),
                .right("SIZE"),
            ] + (withSpace ? [.right("FREES")] : []) + [.left("CLONES"), .left("ID")],
            rows: snapshots.map { snapshot in
                [
                    snapshot.name, Show.list(snapshot.volumes), Show.time(snapshot.createdAt), level(snapshot),
                    Show.consistency(snapshot.requestedConsistency),
                    snapshot.quietSeconds > 0 ? Show.seconds(snapshot.quietSeconds) : "",
                    Show.bytes(snapshot.sizeBytes),
                ] + (withSpace ? [snapshot.space.map { Show.bytes($0.freedBytes) } ?? ""] : [])
                    + [Show.list(snapshot.clones), snapshot.id]
            })
    }

    /// `1.5 GiB`, and what stays where not all comes back.
    static func freed(_ space: SpaceInfo) -> String {
        let text = Show.bytes(space.freedBytes)
        guard space.exclusiveBytes > space.freedBytes else { return text }
        let rest = Show.bytes(space.exclusiveBytes - space.freedBytes)
        return text + "; \(rest) more when only one of the states that were made of it is left"
    }

    /// What `snapshot create` says at its end.
    static func outcome(_ snapshot: SnapshotInfo) -> String {
        var lines = [
            "Snapshot \(snapshot.name) of \(Show.list(snapshot.volumes)): "
                + "\(Show.consistency(snapshot.achievedConsistency))-consistent"
        ]
        lines.append("  id \(snapshot.id)")
        if snapshot.achievedConsistency < snapshot.requestedConsistency {
            lines.append("  Less than asked for (\(Show.consistency(snapshot.requestedConsistency))):")
            lines += (snapshot.evidence?.reasons ?? []).map { "    \($0)" }
        }
        if let evidence = snapshot.evidence { lines += members(evidence) }
        if snapshot.quietSeconds > 0 {
            lines.append("  The longest quiet time of a member was \(Show.seconds(snapshot.quietSeconds))")
        }
        return lines.joined(separator: "\n")
    }

    /// What `snapshot create --dry-run` says.
    static func preview(_ preview: SnapshotPreview) -> String {
        let level = Show.consistency(preview.attainableConsistency)
        var lines = [
            preview.refusal.map { "Snapshot of \(Show.list(preview.volumes)) would fail: \($0)" }
                ?? "Snapshot \(preview.name) of \(Show.list(preview.volumes)) would be \(level)-consistent"
        ]
        if preview.attainableConsistency < preview.requestedConsistency {
            lines.append("  Less than asked for (\(Show.consistency(preview.requestedConsistency))):")
            lines += preview.reasons.map { "    \($0)" }
        }
        if !preview.members.isEmpty {
            let table = Table(
                [
                    .left("MEMBER"), .left("AGENT"), .left("PLUG-IN"), .left("LAYER"), .left("VOLUMES"),
                    .right("QUIESCE"), .left("VERDICT"),
                ],
                rows: preview.members.map { member in
                    [
                        member.label, member.agent, member.plugin, layer(member.layer), Show.list(member.volumes),
                        member.quiesceSeconds.map(Show.seconds) ?? "", member.blockedBy ?? "can be brought to rest",
                    ]
                })
            lines.append(table.rendered(indent: 2))
            lines.append(
                "  Quiet for about \(Show.seconds(preview.estimatedQuietSeconds))"
                    + (preview.isEstimateFromHistory ? ", as measured before" : ", of which a part is a usual value"))
        }
        lines += preview.remarks.map { "  Note: \($0)" }
        lines.append("  Nothing was touched")
        return lines.joined(separator: "\n")
    }

    static func description(_ snapshot: SnapshotInfo) -> String {
        var text = Description()
        text.add("Name", snapshot.name)
        text.add("Id", snapshot.id)
        text.add("Volumes", Show.list(snapshot.volumes))
        text.add("Created", Show.time(snapshot.createdAt))
        if snapshot.kind == .beforeRevert { text.add("Kind", "kept before a revert") }
        text.add("Consistency", "\(level(snapshot)) (asked for: \(Show.consistency(snapshot.requestedConsistency)))")
        text.add("Quiet", snapshot.quietSeconds > 0 ? Show.seconds(snapshot.quietSeconds) : nil)
        text.add("Size", Show.bytes(snapshot.sizeBytes))
        text.add("Would free", snapshot.space.map(freed))
        text.add("Clones", snapshot.clones.isEmpty ? nil : Show.list(snapshot.clones))
        var lines = [text.rendered()]
        guard let evidence = snapshot.evidence else {
            lines.append("\nNo evidence: nothing was brought to rest for this snapshot")
            return lines.joined(separator: "\n")
        }
        lines.append("\nEvidence")
        var cut = Description()
        cut.add("Policy", evidence.policy == .require ? "require the level asked for" : "allow a lower level")
        cut.add(
            "Cut",
            "began \(Show.time(evidence.cut.startedAt)), durable after \(Show.seconds(evidence.cut.durationSeconds)), "
                + "epoch \(evidence.cut.epoch)")
        cut.add("Why not more", lines: evidence.reasons)
        lines.append(cut.rendered(indent: 2))
        lines += evidence.members.isEmpty ? ["  No member was brought to rest"] : members(evidence)
        for member in evidence.members {
            for (name, text) in member.artifacts.sorted(by: { $0.key < $1.key }) {
                lines.append("  \(name) of \(member.label) (\(member.agent)):")
                lines += text.split(separator: "\n", omittingEmptySubsequences: false).map { "    | \($0)" }
                if lines.last == "    | " { lines.removeLast() }
            }
        }
        return lines.joined(separator: "\n")
    }

    private static func members(_ evidence: EvidenceInfo) -> [String] {
        guard !evidence.members.isEmpty else { return [] }
        let table = Table(
            [
                .left("MEMBER"), .left("AGENT"), .left("PLUG-IN"), .left("LAYER"), .left("VOLUMES"), .right("QUIESCE"),
                .right("QUIET"), .left("PROOF"),
            ],
            rows: evidence.members.map { member in
                [
                    member.label, member.agent, member.plugin, layer(member.layer), Show.list(member.volumes),
                    Show.seconds(member.quiesceSeconds), Show.seconds(member.quietSeconds), proof(member),
                ]
            })
        return [table.rendered(indent: 2)]
    }

    /// Whether the cut lay inside the member's quiet window, and if not, what is missing.
    static func proof(_ member: MemberEvidence) -> String {
        if let failure = member.failure { return "none: \(failure)" }
        var missing: [String] = []
        if !member.heldBeforeCut { missing.append("not held before the cut") }
        if !member.releasedAfterCut { missing.append("not released after the cut") }
        if !member.stillHeldAtRelease { missing.append("the hold was lost") }
        return missing.isEmpty ? "held across the cut" : "none: \(Show.list(missing))"
    }

    static func layer(_ layer: ProtectionLayer) -> String {
        switch layer {
        case .fileSystem: "file-system"
        case .hostFileSystem: "host file-system"
        case .application, .machine: layer.rawValue
        }
    }

    private static func level(_ snapshot: SnapshotInfo) -> String {
        Show.consistency(snapshot.achievedConsistency) + (snapshot.kind == .beforeRevert ? " (before revert)" : "")
    }
}
