import Foundation
import NIOCore
import NIOHTTP1

// Volumes, targets, snapshots and clones.

extension NodeClient {
    // MARK: Volumes

    public func volumes() async throws -> [VolumeInfo] { try await get("/v1/volumes") }

    public func volume(_ name: String) async throws -> VolumeInfo { try await get("/v1/volumes/\(segment(name))") }

    public func createVolume(_ request: VolumeCreateRequest) async throws -> VolumeInfo {
        try await post("/v1/volumes", request)
    }

    public func resizeVolume(_ name: String, to sizeBytes: UInt64) async throws -> VolumeInfo {
        try await post("/v1/volumes/\(segment(name))/resize", VolumeResizeRequest(sizeBytes: sizeBytes))
    }

    /// - Parameter withSnapshots: delete its snapshots too; without it a volume that has some is not deleted.
    /// - Returns: the job, where the node answered with one.
    public func deleteVolume(_ name: String, withSnapshots: Bool = false) async throws -> JobInfo? {
        let path = "/v1/volumes/\(segment(name))" + (withSnapshots ? "?withSnapshots=true" : "")
        return job(in: try await delete(path))
    }

    /// What a revert is answered with: a job, or at once what it did.
    public enum RevertAnswer: Sendable {
        case accepted(JobInfo)
        case done(RevertResult)
    }

    public func revert(_ request: RevertRequest) async throws -> RevertAnswer {
        let answer = try await send(.POST, "/v1/reverts", body: try APIJSON.encoder().encode(request))
        if let job = job(in: answer) { return .accepted(job) }
        return .done(try decode(answer, path: "/v1/reverts"))
    }

    // MARK: Targets

    public func targets() async throws -> [TargetInfo] { try await get("/v1/targets") }

    public func target(_ iqn: String) async throws -> TargetInfo { try await get("/v1/targets/\(segment(iqn))") }

    public func allow(_ request: TargetAllowRequest, on iqn: String) async throws -> TargetInfo {
        let path = "/v1/targets/\(segment(iqn))/allow"
        let answer = try await send(.POST, path, body: try APIJSON.encoder().encode(request))
        if answer.body.readableBytes == 0 { return try await target(iqn) }
        return try decode(answer, path: path)
    }

    public func deny(_ initiator: String, on iqn: String) async throws -> TargetInfo {
        let path = "/v1/targets/\(segment(iqn))/deny"
        let body = try APIJSON.encoder().encode(TargetDenyRequest(initiator: initiator))
        let answer = try await send(.POST, path, body: body)
        if answer.body.readableBytes == 0 { return try await target(iqn) }
        return try decode(answer, path: path)
    }

    // MARK: Snapshots

    /// - Parameter volume: only snapshots that this volume is a member of.
    /// - Parameter withSpace: with what each of them holds alone, which may take a while.
    public func snapshots(of volume: String? = nil, withSpace: Bool = false) async throws -> [SnapshotInfo] {
        let query = (volume.map { ["volume=\(queryValue($0))"] } ?? []) + (withSpace ? ["space=true"] : [])
        return try await get("/v1/snapshots" + (query.isEmpty ? "" : "?" + query.joined(separator: "&")))
    }

    /// What deleting all of these would free.
    public func space(_ request: SpaceRequest) async throws -> SpaceInfo { try await post("/v1/space", request) }

    /// With its evidence.
    public func snapshot(_ idOrName: String) async throws -> SnapshotInfo {
        try await get("/v1/snapshots/\(segment(idOrName))")
    }

    public func createSnapshot(_ request: SnapshotCreateRequest) async throws -> JobInfo {
        try await post("/v1/snapshots", request)
    }

    /// What ``createSnapshot(_:)`` would do with the same request; nothing is touched.
    public func previewSnapshot(_ request: SnapshotCreateRequest) async throws -> SnapshotPreview {
        try await post("/v1/preflight", request)
    }

    public func deleteSnapshot(_ idOrName: String) async throws -> JobInfo? {
        job(in: try await delete("/v1/snapshots/\(segment(idOrName))"))
    }

    /// Exports one member of a snapshot, read-only, to one initiator.
    public func exportSnapshot(_ idOrName: String, _ request: SnapshotExportRequest) async throws -> ExportInfo {
        try await post("/v1/snapshots/\(segment(idOrName))/exports", request)
    }

    public func removeSnapshotExport(_ idOrName: String, iqn: String) async throws {
        _ = try await delete("/v1/snapshots/\(segment(idOrName))/exports?iqn=\(queryValue(iqn))")
    }

    // MARK: Clones

    public func clones() async throws -> [VolumeInfo] { try await get("/v1/clones") }

    public func createClone(_ request: CloneRequest) async throws -> VolumeInfo {
        try await post("/v1/clones", request)
    }

    /// Makes a clone the owner of the snapshots that it stands on.
    public func promoteClone(_ name: String) async throws -> PromoteResult {
        let path = "/v1/clones/\(segment(name))/promote"
        return try decode(try await send(.POST, path), path: path)
    }

    public func deleteClone(_ name: String) async throws -> JobInfo? {
        job(in: try await delete("/v1/clones/\(segment(name))"))
    }
}

/// `POST /v1/snapshots/{idOrName}/exports`.
public struct SnapshotExportRequest: Codable, Sendable, Equatable {
    /// The member volume; may be nil where the snapshot has one member.
    public var volume: String?
    /// The only initiator that may log in.
    public var initiator: String
    /// With `chapSecret`: the initiator must prove that it knows the secret, 12 to 255 bytes.
    public var chapUser: String?
    public var chapSecret: String?

    public init(volume: String? = nil, initiator: String, chapUser: String? = nil, chapSecret: String? = nil) {
        self.volume = volume
        self.initiator = initiator
        self.chapUser = chapUser
        self.chapSecret = chapSecret
    }
}
