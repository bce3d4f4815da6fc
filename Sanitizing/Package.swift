// swift-tools-version: 6.2
import PackageDescription

// The data plane and its tests once more, for the thread and the address sanitizer: minutes instead of the whole
// product's many. `Product` and `ProductTests` are links to ../Sources and ../Tests.

let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .unsafeFlags(["-enable-testing"]),
]

let nio: [Target.Dependency] = [
    .product(name: "NIOCore", package: "swift-nio"),
    .product(name: "NIOPosix", package: "swift-nio"),
]

let package = Package(
    name: "sanitizing",
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
    ],
    targets: [
        .target(name: "CLinux", path: "Product/CLinux"),
        .target(name: "BlockIO", dependencies: ["CLinux"], path: "Product/BlockIO", swiftSettings: strict),
        .target(name: "SCSI", dependencies: ["BlockIO"], path: "Product/SCSI", swiftSettings: strict),
        .target(
            name: "ISCSI",
            dependencies: [
                "SCSI", "BlockIO", .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "Logging", package: "swift-log"),
            ] + nio,
            path: "Product/ISCSI", swiftSettings: strict),
        .target(
            name: "BlockStore", dependencies: ["BlockIO", "CLinux"], path: "Product/BlockStore", swiftSettings: strict),
        .target(
            name: "Simulation", dependencies: ["BlockIO"], path: "ProductTests/Simulation", swiftSettings: strict),
        .target(name: "TestInitiator", path: "ProductTests/TestInitiator", swiftSettings: strict),
        // What the thread sanitizer cannot see of Swift's Mutex.
        .target(name: "MutexEdges", path: "MutexEdges"),
        .testTarget(
            name: "SCSITests", dependencies: ["SCSI", "BlockIO", "MutexEdges"], path: "ProductTests/SCSITests",
            swiftSettings: strict),
        .testTarget(
            name: "BlockStoreTests", dependencies: ["BlockStore", "BlockIO", "Simulation", "MutexEdges"],
            path: "ProductTests/BlockStoreTests", swiftSettings: strict),
        .testTarget(
            name: "ISCSITests",
            dependencies: [
                "ISCSI", "SCSI", "BlockIO", "BlockStore", "Simulation", "TestInitiator", "MutexEdges",
                .product(name: "Logging", package: "swift-log"),
            ] + nio,
            path: "ProductTests/ISCSITests", swiftSettings: strict),
    ]
)
