import API
import Foundation

/// What is held, on a tmpfs: written before anything is brought to rest, removed when it is back. Whatever is found
/// here at start was left by an agent that died, and is recovered first of all.
struct HoldJournal: Sendable {
    struct Entry: Codable, Sendable, Equatable {
        var holdID: String
        var sagaID: String
        var plugin: String
        var resources: [ResourceInfo]
    }

    /// The agent's run directory.
    let directory: String

    private var holds: String { directory + "/holds" }

    /// Where a hold's plug-in keeps what must survive it. One directory for each hold: recovering one hold then never
    /// touches another.
    func stateDirectory(of holdID: String) -> String { directory + "/state/" + holdID }

    func prepare() throws {
        for path in [directory, holds, directory + "/state", directory + "/restores"] {
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        }
    }

    func write(_ entry: Entry) throws {
        try FileManager.default.createDirectory(
            atPath: stateDirectory(of: entry.holdID), withIntermediateDirectories: true,
            attributes: [.posixPermissions: 0o700])
        let data = try APIJSON.encoder().encode(entry)
        try data.write(to: URL(fileURLWithPath: path(of: entry.holdID)), options: .atomic)
    }

    func remove(_ holdID: String) {
        unlink(path(of: holdID))
        try? FileManager.default.removeItem(atPath: stateDirectory(of: holdID))
    }

    /// What an earlier agent left. An entry that cannot be read has only its id.
    func leftovers() -> [(holdID: String, entry: Entry?)] {
        let files = (try? FileManager.default.contentsOfDirectory(atPath: holds)) ?? []
        let states = (try? FileManager.default.contentsOfDirectory(atPath: directory + "/state")) ?? []
        let ids = Set(files.filter { $0.hasSuffix(".json") }.map { String($0.dropLast(5)) }).union(states)
        return ids.sorted().compactMap { id in
            guard let data = FileManager.default.contents(atPath: path(of: id)) else {
                // The agent died before it wrote the entry, hence before it asked the plug-in for anything.
                if rmdir(stateDirectory(of: id)) == 0 { return nil }
                return (id, nil)
            }
            return (id, try? APIJSON.decoder().decode(Entry.self, from: data))
        }
    }

    private func path(of holdID: String) -> String { "\(holds)/\(holdID).json" }

    /// The file system a path is on keeps nothing on a disk: its device is one of a tmpfs in proc(5)'s mountinfo.
    static func isInMemory(_ path: String) -> Bool {
        guard let status = FileStatus(path: path),
            let mounts = FileManager.default.contents(atPath: "/proc/self/mountinfo")
        else {
            return false
        }
        return String(decoding: mounts, as: UTF8.self).split(separator: "\n").contains { line in
            let fields = line.split(separator: " ")
            guard fields.count > 6, fields[2] == status.deviceNumber, let dash = fields.firstIndex(of: "-"),
                dash + 1 < fields.count
            else { return false }
            return fields[dash + 1] == "tmpfs" || fields[dash + 1] == "ramfs"
        }
    }
}

/// Identifiers that come from outside and become file names.
enum SafeIdentifier {
    static func check(_ text: String, what: String) throws {
        let allowed = text.utf8.allSatisfy { byte in
            (48...57).contains(byte) || (65...90).contains(byte) || (97...122).contains(byte)
                || byte == 45 || byte == 46 || byte == 95
        }
        guard allowed, (1...128).contains(text.utf8.count), !text.hasPrefix(".") else {
            throw APIFailure(
                status: 400, code: "badIdentifier",
                message: "The \(what) must be 1 to 128 letters, digits, dots, hyphens and underscores")
        }
    }
}
