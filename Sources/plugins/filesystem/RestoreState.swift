import FoundationEssentials
import Glibc
import PluginKit

/// What was mounted before a restore, kept between prepare and finish.
struct RestoreState: Codable, Sendable {
    struct Mount: Codable, Sendable {
        var mountPoint: String
        var type: String
        /// What of the file system was mounted.
        var root: String
        var options: [String]
        var superOptions: [String]
        /// The device that was mounted.
        var source: String
        /// The volume whose device that was, or whose partition; nil when something stood in between.
        var volume: String?
        var partition: Int?
        var resource: String
    }

    /// In the order of mounting.
    var mounts: [Mount]

    static func path(_ parameters: RestoreParameters) throws(PluginFailure) -> String {
        let id = parameters.restoreID
        guard !id.isEmpty, id.utf8.count <= 128, id.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x2F && $0 < 0x7F }) else {
            throw PluginFailure(.badRequest, "A restoreID has 1 to 128 printable bytes and no slash")
        }
        return "\(parameters.stateDirectory)/\(FilesystemPlugin.name)-restore-\(id).json"
    }

    static func read(_ path: String) throws(PluginFailure) -> RestoreState? {
        guard let bytes = readWholeFile(path) else { return nil }
        do {
            return try JSONDecoder().decode(RestoreState.self, from: Data(bytes))
        } catch {
            throw PluginFailure(.badState, "\(path) is damaged: \(error)", hint: "Mount by hand and remove the file")
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
