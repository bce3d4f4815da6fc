import Foundation
import Glibc

/// What is left in the data directory when the pool has failed, so that the next start opens it read-only: after a
/// failed sync nobody knows what the disk holds, and writing on could make it worse. `stillpoint pool check
/// --clear-failure` removes it when the pool is sound.
struct PoolFailureMark: Codable, Equatable, Sendable {
    var reason: String
    var failedAt: Date

    static func path(_ dataDirectory: String) -> String { dataDirectory + "/pool.failed" }

    /// Nil where there is none. One that cannot be read is one all the same.
    static func read(_ dataDirectory: String) -> PoolFailureMark? {
        let path = path(dataDirectory)
        guard access(path, F_OK) == 0 else { return nil }
        guard let data = try? PrivateFile.read(path), let mark = try? JSONDecoder().decode(Self.self, from: data) else {
            return PoolFailureMark(reason: "\(path) says so and cannot be read", failedAt: .now)
        }
        return mark
    }

    /// The disk that refused a sync may be this directory's, too. Where it does not even take the mark, a mark in the
    /// system's cache is kept: it lasts as long as the doubt, since the machine's next run sees what the disk has.
    func write(_ dataDirectory: String) throws {
        let data = try JSONEncoder().encode(self)
        let path = Self.path(dataDirectory)
        do {
            try PrivateFile.write(data, to: path)
        } catch {
            let attributes: [FileAttributeKey: Any] = [.posixPermissions: 0o600]
            guard FileManager.default.createFile(atPath: path, contents: data, attributes: attributes) else {
                throw error
            }
        }
    }

    static func remove(_ dataDirectory: String) { _ = unlink(path(dataDirectory)) }

    /// Why changes are refused, for people.
    var sentence: String {
        "it failed at \(failedAt.formatted(.iso8601)) (\(reason)) and stays read-only until "
            + "stillpoint pool check --clear-failure finds it sound"
    }
}
