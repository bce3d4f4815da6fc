import API

/// What an attachment needs of the node; a test puts something else in its place.
protocol AttachmentNode: Sendable {
    func volume(_ name: String) async throws -> VolumeInfo
    func snapshot(_ idOrName: String) async throws -> SnapshotInfo
    func target(_ iqn: String) async throws -> TargetInfo
    func allow(_ request: TargetAllowRequest, on iqn: String) async throws -> TargetInfo
    func deny(_ initiator: String, on iqn: String) async throws -> TargetInfo
    func exportSnapshot(_ idOrName: String, _ request: SnapshotExportRequest) async throws -> ExportInfo
    func removeSnapshotExport(_ idOrName: String, iqn: String) async throws
}

extension NodeClient: AttachmentNode {}

/// What the user named: a volume, or a member of a snapshot.
enum AttachmentSubject: Equatable, Sendable {
    case volume(VolumeInfo)
    case snapshot(SnapshotInfo, member: String)

    /// A volume's name comes first; `SNAPSHOT/VOLUME` is always a snapshot.
    static func resolve(_ text: String, on node: any AttachmentNode) async throws -> AttachmentSubject {
        let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        if parts.count == 2 {
            return try member(parts[1], of: try await node.snapshot(parts[0]))
        }
        do {
            return .volume(try await node.volume(text))
        } catch let error as APIFailure where error.status == 404 {
            do {
                return try member(nil, of: try await node.snapshot(text))
            } catch let error as APIFailure where error.status == 404 {
                throw CommandFailure(
                    "There is no volume and no snapshot with the name \(text)",
                    hint: "See: stillpoint volume list, stillpoint snapshot list")
            }
        }
    }

    private static func member(_ name: String?, of snapshot: SnapshotInfo) throws -> AttachmentSubject {
        guard let name else {
            guard snapshot.volumes.count == 1, let only = snapshot.volumes.first else {
                throw CommandFailure(
                    "Snapshot \(snapshot.name) has several members: \(Show.list(snapshot.volumes))",
                    hint: "Name one: \(snapshot.name)/\(snapshot.volumes.first ?? "VOLUME")")
            }
            return .snapshot(snapshot, member: only)
        }
        guard snapshot.volumes.contains(name) else {
            throw CommandFailure(
                "Volume \(name) is no member of snapshot \(snapshot.name)",
                hint: "Its members: \(Show.list(snapshot.volumes))")
        }
        return .snapshot(snapshot, member: name)
    }

    /// The attachment's name.
    var name: String {
        switch self {
        case .volume(let volume): volume.name
        case .snapshot(let snapshot, let member): snapshot.name + "/" + member
        }
    }

    var snapshotID: String? {
        if case .snapshot(let snapshot, _) = self { snapshot.id } else { nil }
    }
}

/// The name that an attachment logs in with.
enum InitiatorName {
    /// `iqn.2026-11.io.stillpoint:attach-HOST-NAME`: lower case, and only what RFC 3722 allows; at most 223 bytes
    /// (RFC 7143 4.2.7.1).
    static func make(host: String, name: String, suffix: String? = nil) -> String {
        let end = suffix.map { "-" + $0 } ?? ""
        let prefix = "iqn.2026-11.io.stillpoint:"
        let text = String(("attach-" + host + "-" + name).prefix(223 - prefix.count - end.count)) + end
        let allowed = text.lowercased().map { character -> Character in
            character.isASCII && (character.isLetter || character.isNumber || ".-:".contains(character))
                ? character : "-"
        }
        return prefix + String(allowed)
    }
}
