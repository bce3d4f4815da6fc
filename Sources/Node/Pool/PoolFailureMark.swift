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

    func write(_ dataDirectory: String) throws {
        try PrivateFile.write(try JSONEncoder().encode(self), to: Self.path(dataDirectory))
    }

    static func remove(_ dataDirectory: String) { _ = unlink(path(dataDirectory)) }

    /// Why changes are refused, for people.
    var sentence: String {
        "it failed at \(failedAt.formatted(.iso8601)) (\(reason)) and stays read-only until "
            + "stillpoint pool check --clear-failure finds it sound"
    }
}
