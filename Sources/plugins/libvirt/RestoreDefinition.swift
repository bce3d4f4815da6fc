import PluginKit

/// Where a disk of a restored guest gets its data from.
enum RestoredSource: Sendable, Equatable {
    /// QEMU's own initiator.
    case iscsi(
        host: String, port: String, iqn: String, lun: Int, initiator: String, user: String?, secretUsage: String?)
    case file(path: String)
}

/// Changes a guest's definition for a restore. What is not named here stays as it was, known to this program or not.
struct RestoreDefinition {
    let tree: XMLTree
    private(set) var notes: [String] = []

    /// - Throws: `badState` for text that is no definition.
    init(_ text: String) throws(PluginFailure) {
        tree = try XMLTree(text)
        guard tree.root?.name == "domain" else {
            throw PluginFailure(.badState, "What was kept of the guest is no definition of one")
        }
        tree.root?["id"] = nil
    }

    var text: String { tree.description }

    private var root: XMLElement { tree.root! }

    /// Drops what tells this guest from every other, so that both can live on one network and one host.
    ///
    /// - Parameters:
    ///   - address: makes the MAC addresses: six bytes each.
    ///   - nvram: the new guest's file of UEFI variables; nil where it has none.
    mutating func becomeAnother(
        name: String, uuid: String, nvram: String?, address: () -> String = RestoreDefinition.randomAddress
    ) {
        let former = root.text("name") ?? ""
        setText("name", name)
        setText("uuid", uuid)
        for entry in root.all("sysinfo/system/entry[@name='uuid']") { entry.text = uuid }
        if root.first("title") != nil { setText("title", name) }
        for interface in root.all("devices/interface") {
            interface.all("mac").forEach { $0.remove() }
            interface.append("mac", ["address": address()])
            // The name of a tap device, and a port on a switch, have one owner.
            interface.all("target[@dev]").forEach { $0.remove() }
            for port in interface.all("virtualport/parameters[@interfaceid]") { port["interfaceid"] = nil }
        }
        if let nvram { root.first("os/nvram")?.text = nvram }
        for source in root.all("devices/channel/source[contains(@path, '/channel/target/')]") { source.remove() }
        // Two guests must not write into one log or listen at one socket.
        for source in root.all("devices/serial/source | devices/console/source | devices/channel/source")
        where source["path"] != nil {
            source["path"] = (source["path"] ?? "") + ".\(name)"
        }
        for log in root.all("devices/*/log[@file]") { log["file"] = (log["file"] ?? "") + ".\(name)" }
        for graphics in root.all("devices/graphics[@port]") {
            graphics["port"] = nil
            graphics["tlsPort"] = nil
            graphics["autoport"] = "yes"
        }
        for device in root.all("devices/hostdev") {
            device.remove()
            notes.append("A device of the host that was given to \(former) is not given to \(name) as well")
        }
        changeGeneration()
    }

    /// The generation identifier tells a Windows guest that it has gone back in time.
    mutating func changeGeneration() {
        let former = root.all("genid")
        guard !former.isEmpty else { return }
        former.forEach { $0.remove() }
        // Empty: libvirt makes a new one.
        root.append("genid")
    }

    private func setText(_ element: String, _ value: String) {
        (root.first(element) ?? root.append(element)).text = value
    }

    /// Leaves out the disks that are not among `targets`, CD-ROMs and floppies excepted.
    mutating func keepDisks(_ targets: Set<String>) {
        for disk in root.all("devices/disk") {
            let kind = disk["device"] ?? "disk"
            guard kind == "disk" || kind == "lun", let target = disk.text("target/@dev"), !targets.contains(target)
            else { continue }
            disk.remove()
            notes.append("Disk \(target) is left out")
        }
    }

    /// - Throws: `unknownResource` where there is no such disk.
    mutating func replace(_ target: String, with source: RestoredSource) throws(PluginFailure) {
        guard let disk = root.all("devices/disk").first(where: { $0.text("target/@dev") == target }) else {
            throw PluginFailure(.unknownResource, "The guest's definition has no disk \(target)")
        }
        switch source {
        case .file(let path):
            // What the image stands on is written in the image.
            for name in ["backingStore", "mirror", "auth"] { disk.all(name).forEach { $0.remove() } }
            disk["type"] = "file"
            if let element = disk.first("source"), element["file"] != nil {
                element["file"] = path
                element["index"] = nil
            } else {
                disk.all("source").forEach { $0.remove() }
                disk.append("source", ["file": path])
            }
        case .iscsi(let host, let port, let iqn, let lun, let initiator, let user, let usage):
            for name in ["source", "backingStore", "mirror", "auth"] { disk.all(name).forEach { $0.remove() } }
            disk["type"] = "network"
            disk["device"] = "disk"
            disk["sgio"] = nil
            disk["rawio"] = nil
            (disk.first("driver") ?? disk.append("driver", ["name": "qemu"]))["type"] = "raw"
            let element = disk.append("source", ["protocol": "iscsi", "name": "\(iqn)/\(lun)"])
            element.append("host", ["name": host, "port": port])
            if let user, let usage {
                element.append("auth", ["username": user]).append("secret", ["type": "iscsi", "usage": usage])
            }
            element.append("initiator").append("iqn", ["name": initiator])
        }
    }

    /// An address of QEMU's range, 52:54:00.
    static func randomAddress() -> String {
        let bytes = (0..<3).map { _ in UInt8.random(in: .min ... .max) }
        return "52:54:00:" + bytes.map { hexadecimal($0) }.joined(separator: ":")
    }

    private static func hexadecimal(_ byte: UInt8) -> String {
        let text = String(byte, radix: 16)
        return text.count == 1 ? "0" + text : text
    }
}
