import CZlib
import Foundation
import PluginKit

/// What of a guest's configuration is kept with the snapshot, so that a guest that was deleted can come back.
enum GuestArtifacts {
    /// Of one guest; what does not fit is left out and named in `omitted`.
    static let limitBytes = 96 << 10
    private static let fileLimitBytes = 8 << 20
    static let stateDirectory = "/var/lib/libvirt/swtpm"

    /// - Parameter isLocal: its files can be read here.
    static func collect(
        _ guest: Guest, _ definition: GuestDefinition, isLocal: Bool
    ) throws(LibvirtError) -> [String: String] {
        var artifacts = [
            "name": definition.name, "uuid": definition.uuid, "uri": guest.hypervisor.uri,
            "autostart": "\(guest.startsAlone)", "persistent": "\(guest.isPersistent)",
        ]
        // A guest that is only started, and nowhere defined, has no other definition than the one it runs with.
        artifacts["domainXML"] = try guest.definition(inactive: guest.isPersistent)
        if guest.runID != nil { artifacts["activeXML"] = try guest.definition() }
        var omitted: [String] = []
        var room = limitBytes - artifacts.values.reduce(0) { $0 + $1.utf8.count }
        func add(_ key: String, file path: String) {
            guard isLocal, let bytes = readWholeFile(path), bytes.count < fileLimitBytes,
                let packed = pack(bytes), packed.utf8.count <= room
            else {
                omitted.append("\(key) (\(path))")
                return
            }
            artifacts[key] = packed
            room -= packed.utf8.count
        }
        if let path = definition.nvram {
            artifacts["nvramPath"] = path
            add("nvram", file: path)
        }
        if definition.hasTPM {
            for folder in ["tpm2", "tpm1.2"] {
                let directory = "\(stateDirectory)/\(definition.uuid)/\(folder)"
                for name in directoryEntries(directory).sorted() where !name.hasPrefix(".") {
                    add("tpm.\(folder)/\(name)", file: "\(directory)/\(name)")
                }
            }
            if !artifacts.keys.contains(where: { $0.hasPrefix("tpm.") }) { omitted.append("the TPM's state") }
        }
        if !omitted.isEmpty { artifacts["omitted"] = omitted.joined(separator: "\n") }
        return artifacts
    }

    /// zlib's stream (RFC 1950) in base64.
    static func pack(_ bytes: [UInt8]) -> String? {
        var count = compressBound(UInt(bytes.count))
        var packed = [UInt8](repeating: 0, count: Int(count))
        guard compress2(&packed, &count, bytes, UInt(bytes.count), 9) == Z_OK else { return nil }
        return Data(packed.prefix(Int(count))).base64EncodedString()
    }

    /// Nil for text that `pack` did not make, or that unpacks to more than a file kept here may have.
    static func unpack(_ text: String) -> [UInt8]? {
        guard let packed = Data(base64Encoded: text) else { return nil }
        var capacity = max(64 << 10, packed.count * 8)
        while capacity <= fileLimitBytes * 2 {
            var bytes = [UInt8](repeating: 0, count: capacity)
            var count = UInt(capacity)
            switch uncompress(&bytes, &count, [UInt8](packed), UInt(packed.count)) {
            case Z_OK: return Array(bytes.prefix(Int(count)))
            case Z_BUF_ERROR: capacity *= 4
            default: return nil
            }
        }
        return nil
    }
}
