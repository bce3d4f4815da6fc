import FoundationEssentials
import Glibc
import PluginKit

/// How a cluster ran before a restore, kept between prepare and finish.
struct ClusterState: Codable, Sendable {
    struct Stopped: Codable, Sendable {
        var resource: String
        var dataDirectory: String
        /// False leaves it stopped afterwards too.
        var wasRunning: Bool
        var uid: UInt32
        /// The directory of `postgres` and `pg_ctl`.
        var programs: String
        /// The server's command line without its program, as postmaster.opts has it.
        var options: String
        /// Where its standard error went, when that was a file.
        var log: String?

        /// The options one by one: postmaster.opts has each in double quotes and escapes nothing.
        var optionList: [String] {
            options.split(separator: "\"", omittingEmptySubsequences: false).enumerated()
                .filter { $0.offset % 2 == 1 }.map { String($0.element) }
        }
    }

    var clusters: [Stopped]

    static func path(_ parameters: RestoreParameters) throws(PluginFailure) -> String {
        let id = parameters.restoreID
        guard !id.isEmpty, id.utf8.count <= 128, id.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x2F && $0 < 0x7F }) else {
            throw PluginFailure(.badRequest, "A restoreID has 1 to 128 printable bytes and no slash")
        }
        return "\(parameters.stateDirectory)/\(PostgreSQLPlugin.name)-restore-\(id).json"
    }

    static func read(_ path: String) throws(PluginFailure) -> ClusterState? {
        guard let bytes = readWholeFile(path) else { return nil }
        do {
            return try JSONDecoder().decode(ClusterState.self, from: Data(bytes))
        } catch {
            throw PluginFailure(.badState, "\(path) is damaged: \(error)", hint: "Start by hand and remove the file")
        }
    }

    func write(_ path: String) throws(PluginFailure) {
        do {
            try writeFile(path, [UInt8](try JSONEncoder().encode(self)))
        } catch let failure as PluginFailure {
            throw failure
        } catch {
            throw PluginFailure(.badState, "The restore's state cannot be written: \(error)")
        }
    }
}
