import PluginKit

/// Where the bytes of a guest's disk come from, as its definition says.
enum DiskSource: Sendable, Equatable {
    /// QEMU's own initiator, which the host's kernel knows nothing of.
    case iscsi(target: String, lun: Int)
    case block(path: String)
    case file(path: String)
    /// rbd, nbd, https and so on.
    case network(protocol: String, name: String)
    /// A volume of one of libvirt's storage pools.
    case storagePool(pool: String, volume: String)
    case other(String)

    /// For people.
    var text: String {
        switch self {
        case .iscsi(let target, let lun): "\(target)/\(lun)"
        case .block(let path), .file(let path): path
        case .network(let proto, let name): "\(proto):\(name)"
        case .storagePool(let pool, let volume): "\(volume) of pool \(pool)"
        case .other(let text): text
        }
    }
}

struct GuestDisk: Sendable, Equatable {
    enum Kind: String, Sendable { case disk, lun, cdrom, floppy, hostdev }

    /// E.g. `vda`; for a passed-through device its alias or number.
    var target: String
    var kind: Kind
    /// Nil for an empty drive.
    var source: DiskSource?
    /// `raw`, `qcow2`, …; nil where the definition does not say.
    var format: String?
    /// What a qcow2 image stands on, nearest first, as a running guest's definition lists it. Nil where it does not.
    var backing: [DiskSource]?
    var isReadOnly: Bool
    /// What the guest can know it by. 16 hexadecimal digits for a WWN.
    var serial: String?
    var wwn: String?
}

/// What of a guest's definition this plug-in looks at.
struct GuestDefinition: Sendable, Equatable {
    enum AgentChannel: String, Sendable {
        /// There is no channel for a guest agent.
        case none
        case disconnected
        case connected
    }

    var name: String
    var uuid: String
    var disks: [GuestDisk]
    var agent: AgentChannel
    /// File of the UEFI variables.
    var nvram: String?
    var hasTPM: Bool
    /// E.g. `http://debian.org/debian/12`, where whoever made the guest left a note.
    var operatingSystem: String?

    static let agentChannel = "org.qemu.guest_agent.0"

    /// - Throws: `badState` for text that is no definition of a guest.
    init(_ text: String) throws(PluginFailure) {
        let tree = try XMLTree(text)
        // `virsh edit` files of /etc/libvirt/qemu begin with a comment; a saved state wraps the domain.
        guard let root = tree.root, root.name == "domain", let name = root.text("name"),
            let uuid = root.text("uuid")
        else { throw PluginFailure(.badState, "This is no definition of a guest") }
        self.name = name
        self.uuid = uuid.lowercased()
        disks = root.all("devices/disk").map { Self.disk($0) }
        for (index, device) in root.all("devices/hostdev[@mode='subsystem' and @type='scsi']").enumerated() {
            disks.append(Self.passedThrough(device, index))
        }
        let channel = root.first("devices/channel/target[@name='\(Self.agentChannel)']")
        agent = channel.map { $0["state"] == "connected" ? .connected : .disconnected } ?? .none
        nvram = root.text("os/nvram").flatMap { $0.isEmpty ? nil : $0.trimmedOfSpace }
        hasTPM = root.first("devices/tpm/backend[@type='emulator']") != nil
        operatingSystem = root.text("metadata//*[local-name()='os']/@id")
    }

    var isWindows: Bool { operatingSystem?.lowercased().contains("microsoft.com") ?? false }

    private static func disk(_ element: XMLElement) -> GuestDisk {
        let kind = element["device"].flatMap { GuestDisk.Kind(rawValue: $0) } ?? .disk
        // A block job's mirror is another `source`, further below.
        let source = element.first("source").flatMap { self.source($0, type: element["type"] ?? "file") }
        var backing: [DiskSource] = []
        var isComplete = false
        var store = element.first("backingStore")
        while let current = store {
            guard let type = current["type"] else {
                // An empty element ends the chain.
                isComplete = true
                break
            }
            if let lower = current.first("source").flatMap({ self.source($0, type: type) }) { backing.append(lower) }
            store = current.first("backingStore")
        }
        return GuestDisk(
            target: element.text("target/@dev") ?? "?", kind: kind, source: source,
            format: element.text("driver/@type"), backing: isComplete ? backing : nil,
            isReadOnly: element.first("readonly") != nil, serial: known(element.text("serial")),
            wwn: known(element.text("wwn")?.lowercased()))
    }

    private static func known(_ text: String?) -> String? {
        let text = text?.trimmedOfSpace ?? ""
        return text.isEmpty ? nil : text
    }

    private static func source(_ element: XMLElement, type: String) -> DiskSource? {
        switch type {
        case "file": return element["file"].map { .file(path: $0) }
        case "block": return element["dev"].map { .block(path: $0) }
        case "dir": return element["dir"].map { .other("directory \($0)") }
        case "volume":
            guard let pool = element["pool"], let volume = element["volume"] else { return nil }
            return .storagePool(pool: pool, volume: volume)
        case "network":
            let name = element["name"] ?? ""
            guard element["protocol"] == "iscsi" else {
                return .network(protocol: element["protocol"] ?? "?", name: name)
            }
            return iscsi(name)
        default: return .other(type)
        }
    }

    /// `IQN/LUN`; without a LUN, 0 is meant.
    private static func iscsi(_ name: String) -> DiskSource {
        guard let slash = name.lastIndex(of: "/"), let lun = Int(name[name.index(after: slash)...]) else {
            return .iscsi(target: name.lowercased(), lun: 0)
        }
        return .iscsi(target: name[..<slash].lowercased(), lun: lun)
    }

    /// A SCSI device given to the guest as it is.
    private static func passedThrough(_ element: XMLElement, _ index: Int) -> GuestDisk {
        var source: DiskSource?
        if element.text("source/@protocol") == "iscsi", let name = element.text("source/@name") {
            source = iscsi(name)
        } else if let adapter = element.text("source/adapter/@name"), adapter.hasPrefix("scsi_host"),
            let address = element.first("source/address")
        {
            let number = ["bus", "target", "unit"].map { address[$0] ?? "0" }.joined(separator: ":")
            source = .other("scsi_device/\(adapter.dropFirst("scsi_host".count)):\(number)")
        }
        return GuestDisk(
            target: element.text("alias/@name") ?? "hostdev\(index)", kind: .hostdev, source: source, format: "raw",
            backing: [], isReadOnly: element.first("readonly") != nil)
    }
}
