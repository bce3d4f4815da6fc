import FoundationEssentials

/// What a plug-in must remember between `prepare-restore` and `finish-restore`, as JSON in the state directory: one
/// file for each plug-in and restore.
public enum RestoreNote {
    /// - Parameter plugin: its name, which the file's name begins with.
    /// - Throws: `badRequest` for a restoreID that cannot be part of a file's name.
    public static func path(_ parameters: RestoreParameters, plugin: String) throws(PluginFailure) -> String {
        let id = parameters.restoreID
        guard !id.isEmpty, id.utf8.count <= 128, id.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x2F && $0 < 0x7F }) else {
            throw PluginFailure(.badRequest, "A restoreID has 1 to 128 printable bytes and no slash")
        }
        return "\(parameters.stateDirectory)/\(plugin)-restore-\(id).json"
    }

    /// - Parameter wayOut: what a person can do by hand where the file cannot be read.
    /// - Returns: nil where nothing was noted.
    /// - Throws: `badState` for a damaged file.
    public static func read<Note: Decodable>(
        _ path: String, as type: Note.Type, wayOut: String
    ) throws(PluginFailure) -> Note? {
        guard let bytes = readWholeFile(path) else { return nil }
        do {
            return try JSONDecoder().decode(type, from: Data(bytes))
        } catch {
            throw PluginFailure(.badState, "\(path) is damaged: \(error)", hint: "\(wayOut) and remove the file")
        }
    }

    /// Replaces the file as a whole.
    ///
    /// - Throws: `badState`, `operatingSystem`.
    public static func write(_ note: some Encodable, to path: String) throws(PluginFailure) {
        do {
            try writeFile(path, [UInt8](try JSONEncoder().encode(note)))
        } catch let failure as PluginFailure {
            throw failure
        } catch {
            throw PluginFailure(.badState, "The restore's state cannot be written: \(error)")
        }
    }
}
