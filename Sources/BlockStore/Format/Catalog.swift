/// A dataset as the checkpoint's catalog holds it.
struct DatasetImage: Equatable {
    var number: UInt64
    var volume: UInt32
    /// 0 for none.
    var parent: UInt64
    var role: Dataset.Role
    var epoch: UInt64
    var sizeBytes: UInt64
    var cursor: UInt64
    var root: MapRoot
}

/// A volume as the checkpoint's catalog holds it.
struct VolumeImage: Equatable {
    var number: UInt32
    var head: UInt64
    var id: VolumeID
    var naa: NAA
    var createdAt: UInt64
    var clonedFrom: CloneOrigin?
    var name: String
}

/// A snapshot as the checkpoint's catalog holds it.
struct SnapshotImage: Equatable {
    struct Member: Equatable {
        var volume: VolumeID
        var dataset: UInt64
    }

    var id: SnapshotID
    var kind: SnapshotKind
    var epoch: UInt64
    var createdAt: UInt64
    var name: String
    var members: [Member]
    var attributesRoot: NodePointer
    var attributeBytes: UInt64
}

/// The list of datasets, volumes and snapshots that a checkpoint writes as one stream.
struct CatalogImage: Equatable {
    var datasets: [DatasetImage] = []
    var volumes: [VolumeImage] = []
    var snapshots: [SnapshotImage] = []
    var receives: [ReceiveImage] = []

    func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.put(UInt32(datasets.count))
        writer.put(UInt32(volumes.count))
        writer.put(UInt32(snapshots.count))
        for dataset in datasets { Self.put(dataset, &writer) }
        for volume in volumes { Self.put(volume, &writer) }
        for snapshot in snapshots { Self.put(snapshot, &writer) }
        writer.put(UInt32(receives.count))
        for receive in receives { receive.encode(into: &writer) }
        let detached = datasets.flatMap { dataset in dataset.root.detached.map { (dataset.number, $0) } }
        if !detached.isEmpty {
            writer.put(UInt32(detached.count))
            for (dataset, part) in detached {
                writer.put(dataset)
                writer.put(part)
            }
        }
        return writer.bytes
    }

    private static func put(_ dataset: DatasetImage, _ writer: inout ByteWriter) {
        writer.put(dataset.number)
        writer.put(dataset.parent)
        writer.put(dataset.volume)
        writer.put(UInt32(dataset.role.rawValue))
        writer.put(dataset.epoch)
        writer.put(dataset.sizeBytes)
        writer.put(dataset.cursor)
        writer.put(dataset.root.pointer)
        writer.put(dataset.root.mappedBlocks)
    }

    private static func put(_ volume: VolumeImage, _ writer: inout ByteWriter) {
        writer.put(volume.number)
        writer.put(volume.head)
        writer.put(volume.id.value)
        writer.put(volume.naa.value)
        writer.put(volume.createdAt)
        writer.put(UInt8(volume.clonedFrom == nil ? 0 : 1))
        if let origin = volume.clonedFrom {
            writer.put(origin.snapshot.value)
            writer.put(origin.volume.value)
        }
        writer.put(volume.name)
    }

    private static func put(_ snapshot: SnapshotImage, _ writer: inout ByteWriter) {
        writer.put(snapshot.id.value)
        writer.put(snapshot.kind.rawValue)
        writer.put(snapshot.epoch)
        writer.put(snapshot.createdAt)
        writer.put(snapshot.name)
        writer.put(UInt32(snapshot.members.count))
        for member in snapshot.members {
            writer.put(member.volume.value)
            writer.put(member.dataset)
        }
        writer.put(snapshot.attributesRoot)
        writer.put(snapshot.attributeBytes)
    }

    static func decode(_ bytes: [UInt8]) throws(MalformedBytes) -> CatalogImage {
        var image = CatalogImage()
        guard !bytes.isEmpty else { return image }
        var reader = ByteReader(bytes[...])
        let datasets: UInt32 = try reader.get()
        let volumes: UInt32 = try reader.get()
        let snapshots: UInt32 = try reader.get()
        for _ in 0..<datasets { image.datasets.append(try dataset(&reader)) }
        for _ in 0..<volumes { image.volumes.append(try volume(&reader)) }
        for _ in 0..<snapshots { image.snapshots.append(try snapshot(&reader)) }
        // Catalogs written before there were transfers end here.
        guard reader.remaining > 0 else { return image }
        for _ in 0..<(try reader.get(UInt32.self)) { image.receives.append(try ReceiveImage(&reader)) }
        guard reader.remaining > 0 else { return image }
        let places = Dictionary(uniqueKeysWithValues: image.datasets.enumerated().map { ($1.number, $0) })
        for _ in 0..<(try reader.get(UInt32.self)) {
            guard let index = places[try reader.get()] else { throw MalformedBytes() }
            image.datasets[index].root.detached.append(try reader.get())
        }
        return image
    }

    private static func dataset(_ reader: inout ByteReader) throws(MalformedBytes) -> DatasetImage {
        let number: UInt64 = try reader.get()
        let parent: UInt64 = try reader.get()
        let volume: UInt32 = try reader.get()
        guard let role = Dataset.Role(rawValue: UInt8(truncatingIfNeeded: try reader.get(UInt32.self))) else {
            throw MalformedBytes()
        }
        let epoch: UInt64 = try reader.get()
        let sizeBytes: UInt64 = try reader.get()
        let cursor: UInt64 = try reader.get()
        let pointer = try reader.getPointer()
        return DatasetImage(
            number: number, volume: volume, parent: parent, role: role, epoch: epoch, sizeBytes: sizeBytes,
            cursor: cursor, root: MapRoot(pointer: pointer, mappedBlocks: try reader.get()))
    }

    private static func volume(_ reader: inout ByteReader) throws(MalformedBytes) -> VolumeImage {
        let number: UInt32 = try reader.get()
        let head: UInt64 = try reader.get()
        let id = VolumeID(try reader.getID())
        let naa = NAA(try reader.getID())
        let createdAt: UInt64 = try reader.get()
        var origin: CloneOrigin?
        if try reader.get(UInt8.self) == 1 {
            let snapshot = SnapshotID(try reader.getID())
            origin = CloneOrigin(snapshot: snapshot, volume: VolumeID(try reader.getID()))
        }
        return VolumeImage(
            number: number, head: head, id: id, naa: naa, createdAt: createdAt, clonedFrom: origin,
            name: try reader.getString())
    }

    private static func snapshot(_ reader: inout ByteReader) throws(MalformedBytes) -> SnapshotImage {
        let id = SnapshotID(try reader.getID())
        guard let kind = SnapshotKind(rawValue: try reader.get()) else { throw MalformedBytes() }
        let epoch: UInt64 = try reader.get()
        let createdAt: UInt64 = try reader.get()
        let name = try reader.getString()
        let count: UInt32 = try reader.get()
        var members: [SnapshotImage.Member] = []
        for _ in 0..<count {
            let volume = VolumeID(try reader.getID())
            members.append(SnapshotImage.Member(volume: volume, dataset: try reader.get()))
        }
        let root = try reader.getPointer()
        return SnapshotImage(
            id: id, kind: kind, epoch: epoch, createdAt: createdAt, name: name, members: members,
            attributesRoot: root, attributeBytes: try reader.get())
    }
}
