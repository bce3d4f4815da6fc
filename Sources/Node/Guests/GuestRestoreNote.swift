import API
import Foundation

/// What a restore under way has begun, durable before it is begun: a node that starts again takes it back.
struct GuestRestoreNote: Codable, Sendable {
    var restoreID: String
    var guest: String
    var uuid: String
    var agent: String
    var uri: String
    var isBeside: Bool
    var startedAt = Date()
    /// The agent was asked to stop or change something.
    var isAgentAsked = false
    /// What the agent answered so far.
    var state: [String: String] = [:]
    var revertedVolumes: [String] = []
    /// Name of the snapshot that the revert's state before is kept in; set once it has happened.
    var keptSnapshot: String?
    /// Volumes made to read files from, and their snapshot where the restore came from a clone.
    var sources: [String] = []
    var temporarySnapshot: String?
    /// Volumes made for a guest beside the original.
    var clones: [String] = []
    /// A restore that was made and is to be undone, with what undoing it has done so far.
    var undoing: GuestRestoreResult?
}

/// Notes as files of the node's data directory.
struct GuestRestoreJournal: Sendable {
    let directory: String

    init(dataDirectory: String) { directory = dataDirectory + "/guest-restores" }

    private func path(_ id: String) -> String { "\(directory)/\(id).json" }

    func write(_ note: GuestRestoreNote) throws {
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        let temporary = path(note.restoreID) + ".new"
        try APIJSON.encoder().encode(note).write(to: URL(filePath: temporary))
        let handle = try FileHandle(forUpdating: URL(filePath: temporary))
        try handle.synchronize()
        try handle.close()
        guard rename(temporary, path(note.restoreID)) == 0 else {
            throw APIFailure(
                status: 500, code: "journalFailed", message: "the restore could not be noted in \(directory)")
        }
    }

    func remove(_ id: String) { try? FileManager.default.removeItem(atPath: path(id)) }

    /// What a former process left under way.
    func all() -> [GuestRestoreNote] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        return names.filter { $0.hasSuffix(".json") }.sorted().compactMap { name in
            FileManager.default.contents(atPath: "\(directory)/\(name)")
                .flatMap { try? APIJSON.decoder().decode(GuestRestoreNote.self, from: $0) }
        }
    }
}
